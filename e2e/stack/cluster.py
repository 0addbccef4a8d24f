"""A whole stack: up, attached to, down."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from e2e import build
from e2e.stack import certificates, control_plane, knative, network, processes
from e2e.stack.api import Api, condition, wait_until
from e2e.stack.place import CLONE, NODE_NAME, SYSTEM_NAMESPACE, Place, root

KEPT = 5


class StackError(Exception):
    """Something that the user can put right."""


@dataclass(frozen=True, slots=True)
class Cluster:
    place: Place
    api: Api


def up(
    name: str = "", owned: bool = True, api_flags: Callable[[Place], Sequence[str]] = lambda place: ()
) -> Cluster:
    """Enters the node's namespace. `owned`: the stack is dead once this process is, else it stays until `down`.

    `api_flags`: more of the API server's."""
    network.require()
    if absent := build.missing():
        raise StackError(f"not built yet: {', '.join(absent)} (python -m e2e.build)")
    place = Place(name or secrets.token_hex(3))
    with _one_at_a_time():
        _sweep()
        if Place(place.name) in processes.known():
            raise StackError(f"stack {place.name} is there already (python -m e2e down --stack {place.name})")
        place.logs.mkdir(parents=True)
        record = processes.Record(processes.of_pid(os.getpid()))
        record.write(place)
        network.make_node(place)
    started = time.monotonic()
    try:
        network.enter(place.node)
        certificates.make(place)
        api = control_plane.start(place, record, api_flags(place))
        _say(place, f"Kubernetes answers after {time.monotonic() - started:.1f} s")
        _start_node(place, record, api)
        knative.install(api)
        _say(place, f"Knative is ready after {time.monotonic() - started:.1f} s")
    except BaseException:
        down(place, keep_logs=True)
        raise
    record.ready = True
    if not owned:
        record.owner = None
    record.write(place)
    return Cluster(place, api)


@contextmanager
def another_node(stack: Cluster, name: str) -> Iterator[None]:
    """With a folder of its own for hostPath volumes. In the end its pods are gone, and it is."""
    place, api = stack.place, stack.api
    record = processes.Record.read(place)
    assert record is not None
    process = f"kubelet-{name}"
    _start(place, record, process, "kubelet", name)
    try:
        _wait_node(api, name)
        yield
    finally:
        api.patch("v1", "Node", "", name, {"spec": {"unschedulable": True}})

        def left() -> list[str]:
            found = [*api.list("v1", "Pod", "default"), *api.list("v1", "Pod", SYSTEM_NAMESPACE)]
            pods = [pod for pod in found if pod["spec"].get("nodeName") == name]
            for pod in pods:
                metadata = pod["metadata"]
                api.delete("v1", "Pod", metadata["namespace"], metadata["name"], 0)
            return [pod["metadata"]["name"] for pod in pods]

        api.delete("v1", "Node", "", name)  # first, so that its DaemonSets make no more pods for it
        wait_until(f"node {name} to be empty", lambda: not left(), 60, detail=lambda: str(left()))
        processes.end(place, record, process)


@contextmanager
def devices(api: Api, node: str, resource: str, count: int) -> Iterator[None]:
    """A node has so many, as its device plugin would say; in the end none, which ends no pod that has one."""

    def tell(amount: str | None) -> None:
        status = {"status": {kind: {resource: amount} for kind in ("capacity", "allocatable")}}
        path = f"{api.path('v1', 'Node', '', node)}/status"
        api.call("PATCH", path, status, "application/merge-patch+json")

    tell(str(count))
    try:
        yield
    finally:
        tell(None)


def attach(name: str) -> Cluster:
    """Enters the node's namespace of a stack that is up."""
    place = Place(name)
    record = processes.Record.read(place)
    if record is None or not record.ready:
        raise StackError(f"no stack {name!r} is up (python -m e2e up --stack {name})")
    network.enter(place.node)
    return Cluster(place, Api(place))


def down(place: Place, keep_logs: bool = False) -> None:
    """`keep_logs`: they move to a folder that holds those of the last few failures."""
    if keep_logs:
        kept = root().with_name(f"{root().name}-failed")
        kept.mkdir(exist_ok=True)
        for old in sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime)[: 1 - KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(place.logs, kept / place.name, dirs_exist_ok=True)
        _say(place, f"logs kept in {kept / place.name}")
    processes.remove(place)


def sweep() -> list[str]:
    """Takes down what dead owners left; its names."""
    with _one_at_a_time():
        return _sweep()


def _sweep() -> list[str]:
    swept = []
    for place in processes.known():
        if processes.abandoned(place):
            processes.remove(place)
            swept.append(place.name)
    return swept


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Between sweeping and writing down an owner a stack looks dead; others wait that long."""
    root().mkdir(parents=True, exist_ok=True)
    with (root().parent / f"{root().name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_node(place: Place, record: processes.Record, api: Api) -> None:
    _start(place, record, "addons", "addons")
    _start(place, record, "kubelet", "kubelet")
    _wait_node(api, NODE_NAME)


def _wait_node(api: Api, name: str) -> None:
    wait_until(
        f"node {name} to be ready",
        lambda: condition(api.get("v1", "Node", "", name), "Ready") == "True",
        control_plane.BOOT_S,
    )


def _start(place: Place, record: processes.Record, name: str, module: str, *words: str) -> None:
    processes.start(
        place,
        record,
        name,
        [sys.executable, "-m", f"e2e.stack.{module}", place.name, *words],
        env={"PYTHONPATH": str(CLONE)},
        enter=network.joined,  # the pods' namespaces have to be found when the stack is taken down
    )


def _say(place: Place, text: str) -> None:
    print(f"stack {place.name}: {text}", file=sys.stderr, flush=True)
