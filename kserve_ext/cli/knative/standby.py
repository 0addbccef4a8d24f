"""What `galaxy status` says of standby pods: pools and what they lack, the agents of nodes. Looked up, then pictured.

What nobody but an autoscaler knows (when an agent was heard, what it said of its node) is read from its metrics, by
way of the API server. Who may not list something hears that in its place.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kserve_ext.api.knative.conditions import find, status_of, text_map
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.api.standby import fitting, names, pods, reading
from kserve_ext.api.standby.fitting import Unfit, Wish
from kserve_ext.cli.knative.scrape import Samples, scraped
from kserve_ext.cli.output import section
from kserve_ext.core.standby.pools import NOT_UP
from kserve_ext.kube.client import Client, Kind, KubeError, KubeObject, NotFound
from kserve_ext.kube.kinds import DAEMON_SETS, DEPLOYMENTS, POD_AUTOSCALERS, PODS

Document = dict[str, Any]
AGENT: Final = "galaxy-node-agent"


async def look(client: Client, namespace: str) -> Document:
    """{} where the component isn't installed."""
    try:
        await client.get(DAEMON_SETS, namespace, AGENT)
    except NotFound:
        return {}
    except KubeError as error:
        return {"error": str(error)}
    agents_of = f"{names.COMPONENT_LABEL}={names.AGENT_COMPONENT}"
    found, wanting, autoscalers, agents, metrics = await asyncio.gather(
        _list(client, PODS, "", names.POOL_LABEL),
        _list(client, DEPLOYMENTS, "", REVISION_LABEL),
        _list(client, POD_AUTOSCALERS, "", ""),
        _list(client, PODS, namespace, agents_of),
        scraped(client, namespace, "app=autoscaler"),
    )
    errors = [each for each in (found, wanting, autoscalers, agents) if isinstance(each, str)]
    if isinstance(metrics, str):
        errors.append(metrics)
    return {
        "pools": pools_of(_items(found), _items(wanting), _items(autoscalers)),
        "unfit": unfit_of(_items(wanting)),
        "agents": agents_of_nodes(
            _items(agents), metrics if not isinstance(metrics, str) else [], time.time()
        ),
        "errors": errors,
    }


def pools_of(
    found: Iterable[KubeObject], wanting: Iterable[KubeObject], autoscalers: Iterable[KubeObject]
) -> list[Document]:
    """`wanting`: Deployments of revisions. A pool's size is the largest that a reachable revision wishes for.

    Why a pool is short the condition of its revisions says, if it is known; else what the kubelet says of its pods.
    """
    unreachable = {
        (pa["metadata"]["namespace"], pa["metadata"]["name"])
        for pa in autoscalers
        if (pa.get("spec") or {}).get("reachability") == "Unreachable"
    }
    said = {
        (pa["metadata"]["namespace"], pa["metadata"]["name"]): condition
        for pa in autoscalers
        if (condition := find((pa.get("status") or {}).get("conditions"), names.STANDBY_READY)) is not None
    }
    sizes: dict[str, int] = {}
    lacks: dict[str, Document] = {}
    specs: dict[str, Document] = {}
    for deployment in wanting:
        wish = fitting.read(deployment)
        if not isinstance(wish, Wish):
            continue
        pool = pods.pool(wish)
        specs[pool.key] = pool.pod["spec"]
        metadata = deployment["metadata"]
        revision = text_map(metadata.get("labels")).get(REVISION_LABEL, "")
        size = 0 if (metadata["namespace"], revision) in unreachable else wish.size
        sizes[pool.key] = max(sizes.get(pool.key, 0), size)
        lack = said.get((metadata["namespace"], revision), {})
        if size and NOT_UP in str(lack.get("message")):
            lacks[pool.key] = lack
    states: dict[str, Counter[str]] = {}
    troubles: dict[str, str] = {}
    for pod in found:
        fact = reading.fact(reading.slim(pod))
        specs.setdefault(fact.pool, pod.get("spec") or {})
        state = "taken" if fact.revision else "free" if fact.ready else "starting"
        if fact.leaving or fact.ended:
            state = "ending"
        states.setdefault(fact.pool, Counter())[state] += 1
        if fact.trouble and not fact.revision:
            troubles[fact.pool] = fact.trouble
    rows = []
    for key in sorted({*sizes, *states}):
        namespace, _, digest = key.partition("/")
        count = states.get(key, Counter())
        if not (count or sizes.get(key)):
            continue  # of former revisions, which Knative keeps by the dozen
        short = count["free"] < sizes.get(key, 0)
        lack = lacks.get(key, {})
        why = str(lack.get("message")).partition(NOT_UP)[2] if lack else troubles.get(key, "")
        none = not count["free"] and not count["taken"]
        rows.append(
            {
                "namespace": namespace,
                "pool": digest,
                "wanted": sizes.get(key, 0),
                **{state: count[state] for state in ("free", "starting", "taken", "ending")},
                **_shape(specs[key]),
                "why": why if short else "",
                "amiss": short and (none or lack.get("severity") == "Warning"),
            }
        )
    return rows


def unfit_of(wanting: Iterable[KubeObject]) -> list[Document]:
    """Revisions that wish for standby pods and can't have any."""
    rows = []
    for deployment in wanting:
        wish = fitting.read(deployment)
        if isinstance(wish, Unfit):
            revision = text_map(deployment["metadata"].get("labels")).get(REVISION_LABEL, "")
            rows.append({"revision": f"{deployment['metadata']['namespace']}/{revision}", "why": wish.reason})
    return rows


def agents_of_nodes(agents: Iterable[KubeObject], metrics: Samples, now: float) -> list[Document]:
    """`metrics`: of all autoscalers; of several that have heard an agent the latest counts."""
    heard: dict[str, float] = {}
    slots: dict[str, dict[str, int]] = {}
    devices: dict[str, dict[str, int]] = {}
    for name, labels, value in metrics:
        node = labels.get("node", "")
        if name == "galaxy_standby_node_heard_timestamp_seconds":
            heard[node] = max(heard.get(node, 0.0), value)
        elif name == "galaxy_standby_node_slots":
            slots.setdefault(node, {})[labels["state"]] = int(value)
        elif name == "galaxy_standby_node_devices":
            devices.setdefault(node, {})[labels["kind"]] = int(value)
    rows = []
    for pod in agents:
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        conditions = (pod.get("status") or {}).get("conditions")
        rows.append(
            {
                "node": node,
                "pod": pod["metadata"]["name"],
                "ready": status_of(conditions, "Ready"),
                "why": str((find(conditions, "Ready") or {}).get("message") or ""),
                "heard_s": round(now - heard[node], 1) if node in heard else None,
                "slots": slots.get(node, {}),
                "gpus": devices.get(node, {}).get("gpu"),
                "free_gpus": devices.get(node, {}).get("free-gpu"),
                "rdma": devices.get(node, {}).get("rdma"),
            }
        )
    return sorted(rows, key=lambda row: str(row["node"]))


def picture(facts: Document) -> str:
    if not facts:
        return "\nStandby pods: not installed (galaxy install --component standby)"
    if facts.get("error"):
        return f"\nStandby pods: {facts['error']}"
    fields = ("namespace", "pool", "runtime", "level", "shape", "wanted", "free", "starting", "taken", "why")
    columns = [field.upper() for field in fields[:-1]]
    parts = [
        section("Standby pools", [*columns, "WHY SHORT"], [[p[f] for f in fields] for p in facts["pools"]])
    ]
    if facts["unfit"]:
        rows = [(each["revision"], each["why"]) for each in facts["unfit"]]
        parts.append(section("Without standby pods that fit", ("REVISION", "WHY"), rows))
    parts.append(
        section(
            "Node agents",
            ("NODE", "POD", "READY", "HEARD", "SLOTS", "GPUS FREE", "RDMA", "WHY"),
            [_agent(agent) for agent in facts["agents"]],
        )
    )
    return "\n".join([*parts, *(f"not seen: {error}" for error in facts["errors"])])


# --- inside


def _agent(agent: Mapping[str, Any]) -> tuple[object, ...]:
    heard = f"{agent['heard_s']:g} s ago" if agent["heard_s"] is not None else "never"
    slots = " ".join(f"{state}:{count}" for state, count in sorted(agent["slots"].items()))
    gpus = f"{agent['free_gpus']}/{agent['gpus']}" if agent["gpus"] is not None else ""
    rdma = agent["rdma"] if agent["rdma"] is not None else ""
    return agent["node"], agent["pod"], agent["ready"], heard, slots, gpus, rdma, agent["why"]


def _shape(spec: Mapping[str, Any]) -> Document:
    container: Document = next(iter(spec.get("containers") or ()), {})
    env = {e["name"]: str(e.get("value") or "") for e in container.get("env") or ()}
    resources = container.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {
        "runtime": env.get(names.ENV_RUNTIME, ""),
        "level": env.get(names.ENV_LEVEL, ""),
        "shape": " ".join(f"{name.rpartition('/')[2]}={amount}" for name, amount in sorted(amounts.items())),
    }


async def _list(client: Client, kind: Kind, namespace: str, labels: str) -> list[KubeObject] | str:
    """Or why they can't be listed."""
    try:
        return (await client.list(kind, namespace, labels=labels)).items
    except KubeError as error:
        return f"{kind}: {error}"


def _items(found: list[KubeObject] | str) -> list[KubeObject]:
    return [] if isinstance(found, str) else found
