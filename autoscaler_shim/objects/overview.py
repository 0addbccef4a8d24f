"""What the command `galaxy` asks of the running cluster: status, the marks of one request, logs.

Collects what the functions, nodes and instances say of themselves (Describe) and lays it side by side. A part that
does not answer in time is listed with the reason. Remembers the marks of the last instances and the size of each
node; decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

import aiohttp
import msgspec

from autoscaler_shim.objects.book import Document
from autoscaler_shim.objects.reconciler import Reconciler
from kserve_ext.api.kserve import kv_transfer
from kserve_ext.core.facts import Member, Resources, Revision
from kserve_ext.core.ids import RevisionKey
from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.wire.messages import Describe, Description

ANSWER_S: Final = 1.0
#: Instances whose marks are kept after they have ended.
MOST_SEEN: Final = 1000
LOOK_AFTER_S: Final = 0.3
LOOK_AT_CHANNELS_S: Final = 2.0
#: Instances that are asked for their marks of one request.
MOST_ASKED: Final = 32
NOTHING_LEFT: Final = "what it did with the request is not known"


class Overview:
    """Asks around; every question is bounded by ANSWER_S."""

    def __init__(self, rpc: Rpc, membership: Membership, reconciler: Reconciler) -> None:
        self.rpc = rpc
        self.membership = membership
        self.reconciler = reconciler
        #: The last instances that were seen, so that a request can be explained when its instance has gone.
        self._seen: OrderedDict[str, Document] = OrderedDict()
        #: What each node of the view is able to run when empty, as it last said.
        self._capacity: dict[str, Resources] = {}
        self._labels: dict[str, dict[str, str]] = {}
        #: What ready instances say of their KV channels, by node; each with its revision.
        self._channels: dict[str, dict[str, tuple[str, Document]]] = {}
        self._news = asyncio.Event()

    def news(self) -> None:
        """Some revision's instances have changed, or the nodes have."""
        self._news.set()

    async def follow(self, changed: Callable[[], None]) -> None:
        """Looks at nodes and instances soon after there is news of them; runs until cancelled.

        `changed`: other nodes, nodes of another size or with other labels, other channels. Of channels no news comes,
        so that they are looked at all the time that there are any.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AT_CHANNELS_S if self._any_channels() else None):
                    await self._news.wait()
                    await asyncio.sleep(LOOK_AFTER_S)
            self._news.clear()
            before = dict(self._capacity), dict(self._labels), self._channels_shown()
            await self.look()
            if (self._capacity, self._labels, self._channels_shown()) != before:
                changed()

    def channels(self, revision: RevisionKey) -> list[tuple[str, Document]]:
        """What the ready instances of a revision say of their KV channels."""
        every = (entry for of_node in self._channels.values() for entry in of_node.items())
        return sorted((name, facts) for name, (key, facts) in every if key == revision)

    def _any_channels(self) -> bool:
        return any(self._channels.values())

    def _channels_shown(self) -> dict[str, str]:
        """As the condition says them: how much has been transferred is none of it."""
        every = (entry for of_node in self._channels.values() for entry in of_node.items())
        return {name: str(kv_transfer.verdict([(name, facts)])) for name, (_, facts) in every}

    async def status(self) -> Document:
        """Functions, partitions, nodes, slots, instances, revisions, held requests."""
        view = self.membership.view
        asked = [m for m in view.members if m.kind != "objects"]
        said = dict(zip([m.id for m in asked], await self._ask(asked, "status"), strict=True))
        controller = await self._describe(self.membership.controller, "status", "")
        members = [_member(m) for m in view.members]
        nodes, instances = [], []
        for member in view.of("node"):
            facts = said[member.id]
            own = facts.pop("instances", None)
            for instance in own if isinstance(own, list) else ():
                instances.append({**instance, "node": member.id})
            nodes.append({"node": member.id, "slots": {}, **facts, "instances": len(own or ())})
        functions = [{"id": m.id, "kind": m.kind, **said[m.id]} for m in asked if m.kind != "node"]
        return {
            "epoch": view.epoch,
            "members": members,
            "controller": controller,
            "functions": functions,
            "nodes": nodes,
            "instances": sorted(instances, key=lambda i: str(i.get("id"))),
            "revisions": self._revisions(functions),
            "zygotes": self._zygotes(),
            "held": sum(_count(f.get("held")) for f in functions if f["kind"] == "dispatch"),
        }

    def _zygotes(self) -> list[str]:
        """Runtime modules that nodes keep imported for the services there are."""
        outcomes = [o for o in self.reconciler.outcomes.values() if not (o.stopped or o.too_large)]
        commands = [o.revision.command for o in outcomes if o.revision is not None]
        return sorted({command.zygote for command in commands if command.zygote})

    def _revisions(self, functions: Iterable[Document]) -> list[Document]:
        """Each revision with what its home says, and what all shards hold of it."""
        held: dict[str, int] = {}
        homes: dict[str, str] = {}
        for function in functions:
            for entry in function.get("revisions") or ():
                if not isinstance(entry, dict):
                    continue
                key = str(entry.get("revision"))
                held[key] = held.get(key, 0) + _count(entry.get("held"))
                if entry.get("home"):
                    homes[key] = str(function["id"])
        found = []
        for service, rollout in sorted(self.reconciler.rollouts.items()):
            for revision in rollout.revisions:
                seen = self.reconciler.observed.get(revision)
                found.append(
                    {
                        "revision": revision,
                        "service": f"{service.namespace}/{service.name}",
                        "traffic": 100 if revision == rollout.serving else 0,
                        "home": homes.get(revision, ""),
                        "desired": seen.desired if seen else 0,
                        "ready": seen.ready if seen else 0,
                        "starting": seen.starting if seen else 0,
                        "held": held.get(revision, seen.held if seen else 0),
                        "reason": (seen.reason or seen.short) if seen else "",
                    }
                )
        return found

    def too_large(self, revision: Revision) -> str:
        """Why no node could run an instance even when empty, "" if one can, or if no node has said its size."""
        reasons, selected = [], dict(revision.node_selector)
        fitting = {n: size for n, size in sorted(self._capacity.items()) if self._selected(n, selected)}
        if self._capacity and not fitting:
            labels = ", ".join(f"{key}={value}" for key, value in selected.items())
            return f"no node has the labels that nodeSelector names: {labels}"
        for node, size in fitting.items():
            if revision.needs.fits(size):
                return ""
            reasons.append(f"{node}: {revision.needs.short_of(size).replace(' free', ' there')}")
        return f"no node is large enough ({'; '.join(reasons)})" if reasons else ""

    def _selected(self, node: str, labels: dict[str, str]) -> bool:
        return labels.items() <= self._labels.get(node, {}).items()

    async def request(self, request_id: str) -> Document | None:
        """The marks of one request from everybody who saw it; None when no Dispatch function knows it."""
        shards = self.membership.view.of("dispatch")
        answers = await self._ask(shards, "request", request_id)
        seen = [(m.id, a) for m, a in zip(shards, answers, strict=True) if a.get("marks")]
        if not seen:
            return None
        shard, record = seen[0]
        marks = _marks(record, shard)
        await self.look()
        instances = list(self._seen.values())
        concerned = self._concerned(str(record.get("revision")), str(record.get("instance")), instances)
        lanes: list[Document] = []
        facts = await asyncio.gather(*(self._instance_facts(i, request_id) for i in concerned))
        own = str(record.get("instance"))
        for instance, fact in zip(concerned, facts, strict=True):
            name = str(instance["id"])
            if not fact.get("marks") and name != own:
                continue
            marks += _marks(instance, name, source="node") + _marks(fact, name, source="instance")
            rest = {k: v for k, v in fact.items() if k not in ("marks", "id")}
            lanes.append(
                {
                    "instance": name,
                    "revision": instance.get("revision"),
                    "node": instance["node"],
                    **_end(instance, fact),
                    **rest,
                }
            )
        if own and own not in {str(instance["id"]) for instance in concerned}:
            ended = f"no node knows it any more; {NOTHING_LEFT}"
            lanes.append({"instance": own, "revision": record.get("revision"), "node": "", "ended": ended})
        known = {k: v for k, v in record.items() if k != "marks"}
        return {**known, "id": request_id, "shard": shard, "instances": lanes, "marks": marks}

    async def look(self) -> None:
        """Asks the nodes what they are and run."""
        nodes = self.membership.view.of("node")
        self._capacity = {m.id: self._capacity[m.id] for m in nodes if m.id in self._capacity}
        self._labels = {m.id: self._labels[m.id] for m in nodes if m.id in self._labels}
        self._channels = {m.id: self._channels[m.id] for m in nodes if m.id in self._channels}
        for member, facts in zip(nodes, await self._ask(nodes, "status"), strict=True):
            capacity = facts.get("capacity")
            if isinstance(capacity, dict):
                sizes = {name: _count(capacity.get(name)) for name in Resources._fields}
                self._capacity[member.id] = Resources(**sizes)
                labels = facts.get("labels")
                self._labels[member.id] = labels if isinstance(labels, dict) else {}
            if "error" not in facts:
                self._channels[member.id] = _kv_of(facts.get("instances") or ())
            for instance in facts.get("instances") or ():
                if isinstance(instance, dict) and "id" in instance:
                    self._seen.pop(str(instance["id"]), None)
                    self._seen[str(instance["id"])] = {**instance, "node": member.id}
        while len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)

    def _concerned(self, revision: str, instance: str, instances: list[Document]) -> list[Document]:
        """The instance that answered, and those of the other revision of its group."""
        outcomes = [o for o in self.reconciler.outcomes.values() if o.revision is not None]
        groups = {str(k): o.revision.group for o in outcomes for k in o.rollout.revisions if o.revision}
        group = groups.get(revision, "")
        first = [i for i in instances if i.get("id") == instance]
        mates = [
            i
            for i in reversed(instances)
            if group and groups.get(str(i.get("revision"))) == group and i.get("id") != instance
        ]
        return (first + mates)[:MOST_ASKED]

    async def _instance_facts(self, instance: Document, request_id: str) -> Document:
        """What one instance says of a request, or has left behind; {} when it does not know, or isn't ours."""
        found = await self._ask_instance(instance.get("addr"), request_id)
        if found:
            return found
        nodes = [m for m in self.membership.view.of("node") if m.id == instance["node"]]
        left = await self._ask(nodes, "request", f"{instance['id']}:{request_id}")
        return left[0] if left and left[0].get("marks") else {}

    async def _ask_instance(self, addr: object, request_id: str) -> Document:
        """GET /galaxy/requests/ID."""
        if not addr:
            return {}
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"http://{addr}/galaxy/requests/{request_id}") as answer,
            ):
                facts = await answer.json(content_type=None) if answer.status == 200 else {}
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
            return {}
        return facts if isinstance(facts, dict) else {}

    async def _ask(self, members: Iterable[Member], what: str, key: str = "") -> list[Document]:
        return list(await asyncio.gather(*(self._describe(m.addr, what, key) for m in members)))

    async def _describe(self, addr: str, what: str, key: str) -> Document:
        try:
            reply: Description = await self.rpc.call(addr, Describe(what, key), ANSWER_S)
            facts: Any = msgspec.json.decode(reply.body)
        except (RpcError, msgspec.DecodeError) as error:
            return {"error": str(error)}
        return facts if isinstance(facts, dict) else {}


def _member(member: Member) -> Document:
    own = {"id": member.id, "kind": member.kind, "addr": member.addr, "incarnation": member.incarnation}
    return own | dict(member.info)


def _end(instance: Document, fact: Document) -> Document:
    """How an instance ended, if it has; one that was killed has left nothing of the request."""
    state = instance.get("state")
    if state not in ("failed", "gone"):
        return {}
    how = str(instance.get("reason") or state)
    return {"ended": how if fact.get("marks") else f"{how}; {NOTHING_LEFT}"}


def _kv_of(instances: Iterable[object]) -> dict[str, tuple[str, Document]]:
    return {
        str(i["id"]): (str(i.get("revision")), i["kv"])
        for i in instances
        if isinstance(i, dict) and i.get("state") == "ready" and "id" in i and _makes_sense(i.get("kv"))
    }


def _makes_sense(kv: object) -> bool:
    """An instance may be anybody's program, and write anything."""
    try:
        msgspec.convert(kv, kv_transfer.Said)
    except msgspec.ValidationError:
        return False
    return True


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _marks(facts: Document, where: str, source: str = "dispatch") -> list[Document]:
    """Marks come as [name, at, detail] or {"name", "at", "detail"}: both are read."""
    found = []
    for mark in facts.get("marks") or ():
        if isinstance(mark, dict):
            entry = {"name": mark.get("name"), "at": mark.get("at"), "detail": mark.get("detail") or ""}
        else:
            name, at, *detail = mark
            entry = {"name": name, "at": at, "detail": detail[0] if detail else ""}
        if entry["at"]:
            found.append({**entry, "where": where, "source": source})
    return found
