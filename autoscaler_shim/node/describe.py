"""What a node says to people: bodies of Describe for status, an instance, its log, a request of an ended one."""

from __future__ import annotations

from typing import Any

from autoscaler_shim.node import logs
from autoscaler_shim.node.folders import read_json
from autoscaler_shim.node.instances import Instances
from kserve_ext.core.ids import InstanceID
from kserve_ext.core.node.machine import NodeMachine


def describe(machine: NodeMachine, instances: Instances, what: str, key: str) -> dict[str, Any]:
    if what == "instance":
        return _instance(machine, instances, InstanceID(key))
    if what == "log":
        return _log(instances, key)
    if what == "request":
        return _request(instances, key)
    status = machine.status()
    fetching = instances.models.under_way()
    return {
        "id": machine.node,
        "kind": "node",
        "node": machine.node,
        "capacity": status.capacity._asdict(),
        "free": status.free._asdict(),
        "slots": dict(status.slots),
        "zygotes": {module: z.state for module, z in machine.slots.zygotes.items()},
        "models": list(status.models),
        "fetching": {key: {"done": p.done, "total": p.total} for key, p in fetching.items()},
        "accepting": status.accepting,
        "labels": dict(status.labels),
        "incarnation": machine.incarnation,
        "admitted": machine.admitted_total,
        "refused": machine.refused_total,
        "stale": machine.stale_total,
        "duplicates": machine.duplicate_total,
        "instances": [_instance(machine, instances, instance) for instance in sorted(machine.lives.known)],
    }


def _instance(machine: NodeMachine, instances: Instances, instance: InstanceID) -> dict[str, Any]:
    life = machine.lives.known.get(instance)
    if life is None:
        return {}
    fact = life.fact(machine.node)
    running = instances.running.get(instance)
    process = running.process if running else None
    progress = running.progress if running and life.state == "fetching" else None
    return {
        "id": fact.id,
        "revision": fact.revision,
        "node": fact.node,
        "state": fact.state,
        "addr": fact.addr,
        "pid": process.pid if process else 0,
        "generation": fact.generation,
        "epoch": fact.epoch,
        "reason": fact.reason,
        "permanent": fact.permanent,
        "log": str(instances.folder.instance(instance) / "log"),
        "fetched": {"done": progress.done, "total": progress.total} if progress else None,
        "marks": [[m.name, m.at, m.detail] for m in fact.marks],
        "kv": running.said.kv if running and running.said else None,
    }


def _log(instances: Instances, key: str) -> dict[str, Any]:
    """`key`: INSTANCE or INSTANCE:LINES. Also of instances that have ended, while their folder is kept."""
    name, _, lines = key.partition(":")
    folder = instances.folder.instance(InstanceID(name))
    if "/" in name or not (folder / "spec.json").exists():
        return {}
    count = int(lines) if lines.isdigit() else 200
    return {"id": name, "path": str(folder / "log"), "text": logs.tail(folder / "log", count)}


def _request(instances: Instances, key: str) -> dict[str, Any]:
    """`key`: INSTANCE:REQUEST. What an instance of ours left behind when it ended; a killed one leaves nothing."""
    name, _, request = key.partition(":")
    if "/" in name:
        return {}
    facts = read_json(instances.folder.instance(InstanceID(name)) / "requests.json").get(request)
    return facts if isinstance(facts, dict) else {}
