"""A node agent over real sockets: slots prove who they are, are taken and freed, and activators hear of it."""

from __future__ import annotations

import asyncio
import base64
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from autoscaler_shim.node_agent.agent import AnotherKey, NodeAgent
from kserve_ext.core.ids import RevisionKey
from kserve_ext.kube.kinds import NODES, SECRETS
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.wire.messages import FreeSlot, NodeSlots, SlotReply, TakeSlot, WatchSlots
from kserve_ext.wire.slot_socket import State
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until
from tests.support.standby import (
    KEY,
    NODE,
    REVISION,
    SYSTEM,
    FakeActivator,
    FakeSlot,
    assignment,
    put_cluster,
    review,
    settings,
)


class World:
    def __init__(self, api: ApiServer, agent: NodeAgent, folder: Path) -> None:
        self.api = api
        self.agent = agent
        self.autoscaler = Rpc("autoscaler", KEY)
        self.path = folder / "agent.sock"

    def slot(self, pod: str = "default/a", uid: str = "u1") -> FakeSlot:
        return FakeSlot(self.api, self.path, pod, uid)

    async def watch(self, tag: str = "") -> NodeSlots:
        found: NodeSlots = await self.autoscaler.call(self.agent.addr, WatchSlots(tag))
        return found

    async def states(self, *wanted: str) -> NodeSlots:
        """Waits until the slots are in these states, by pod."""
        tag = ""
        while True:
            found = await self.watch(tag)
            if [slot.state for slot in found.slots] == list(wanted):
                return found
            tag = found.tag

    async def take(self, slot: FakeSlot, *tell: str, term: int = 1, **options: Any) -> SlotReply:
        given = assignment(instance=slot.hello.pod.partition("/")[2], **options)
        message = TakeSlot(slot.hello.pod, slot.hello.uid, given, tell, term)
        reply: SlotReply = await self.autoscaler.call(self.agent.addr, message)
        return reply

    async def free(self, slot: FakeSlot, revision: RevisionKey = REVISION, term: int = 1) -> SlotReply:
        message = FreeSlot(slot.hello.pod, slot.hello.uid, revision, term)
        reply: SlotReply = await self.autoscaler.call(self.agent.addr, message)
        return reply


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with ApiServer() as api, api.client() as client:
        put_cluster(api)
        agent = NodeAgent(settings(folder), client)
        await agent.start()
        await until(lambda: agent.addr != "", "autoscalers may call")
        made = World(api, agent, folder)
        try:
            yield made
        finally:
            await made.autoscaler.close()
            await agent.stop()


def test_a_slot_is_taken_serves_and_is_given_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            activator = FakeActivator()
            await activator.start()
            slot = w.slot()
            await slot.dial()
            (shown,) = (await w.states("ready")).slots
            assert (shown.pod, shown.uid, shown.pool, shown.addr, shown.gpus) == (
                "default/a",
                "u1",
                "pool-1",
                "10.0.0.7",
                1,
            )
            reply = await w.take(slot, activator.addr)
            assert reply.reason == ""
            assert reply.slot is not None
            assert (reply.slot.state, reply.slot.revision) == ("starting", REVISION)
            await until(
                lambda: activator.news == [("a", "ready", "10.0.0.7:8012")], "the activator hears of it"
            )
            assert (await w.states("serving")).slots[0].revision == REVISION
            again = await w.take(slot, activator.addr)
            assert (again.reason, len(slot.orders)) == ("", 1)
            assert (await w.free(slot)).reason == ""
            await until(lambda: activator.news[-1] == ("a", "gone", "10.0.0.7:8012"), "it is taken back")
            assert (await w.states("ready")).slots[0].revision == ""
            assert (await w.take(slot, activator.addr, http2=True)).reason == ""
            await until(
                lambda: activator.news[-1] == ("a", "ready", "10.0.0.7:8013"), "it serves over HTTP/2"
            )
            await slot.close()
            await until(lambda: activator.news[-1] == ("a", "gone", "10.0.0.7:8013"), "its end is told")
            await w.states()
            await activator.rpc.close()

    run(test())


def test_an_activator_that_joins_late_hears_what_serves_already(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            first, second = FakeActivator(), FakeActivator()
            await first.start()
            await second.start()
            slot = w.slot()
            await slot.dial()
            await w.states("ready")
            await w.take(slot, first.addr)
            await until(lambda: len(first.news) == 1, "the first hears of it")
            await w.take(slot, first.addr, second.addr)
            await until(lambda: len(second.news) == 1, "so does the second")
            await slot.close()
            await until(lambda: len(first.news) == len(second.news) == 2, "both hear of its end")
            for activator in (first, second):
                await activator.rpc.close()

    run(test())


def test_two_want_one_slot_and_a_former_holder_wants_any(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            slot = w.slot()
            slot.quiet = True
            await slot.dial()
            await w.states("ready")
            assert (await w.take(slot, term=5)).reason == ""
            other = await w.take(slot, revision=RevisionKey("default/second"), term=9)
            assert other.reason == "pod default/a is starting default/first; take another slot"
            assert other.slot is not None
            assert other.slot.revision == REVISION
            late = await w.take(slot, term=4)
            assert late.stale
            assert (await w.free(slot, term=4)).stale
            assert (await w.free(slot, RevisionKey("default/second"), term=9)).reason == (
                "pod default/a has default/first; nothing was done"
            )
            foreign = await w.take(slot, revision=RevisionKey("elsewhere/first"))
            assert foreign.reason == "pod default/a serves revisions of its own namespace only"
            stranger = w.slot("default/a", "u2")
            assert "uid u1, not u2" in (await w.take(stranger, term=9)).reason
            assert "has no slot here" in (await w.take(w.slot("default/b"), term=9)).reason
            assert len(slot.orders) == 1
            await slot.close()

    run(test())


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"authenticated": False, "error": "token expired"}, "the token is refused: token expired"),
        ({**review(), "audiences": ["https://kubernetes.default.svc"]}, "is not for kserve-galaxy.io"),
        (review(pod="elsewhere/a"), "not of a ServiceAccount in 'default'"),
        (review(pod="default/b"), "names 'b', where pod 'a' is expected"),
        (review(uid="u2"), "names 'u2', where uid 'u1' is expected"),
        (review(node="node-2"), "names 'node-2', where node 'node-1' is expected"),
        ({**review(), "user": {"username": "system:serviceaccount:default:default"}}, "names no pod"),
        ({**review(), "user": {"username": "system:admin"}}, "not of a ServiceAccount"),
    ],
)
def test_who_does_not_prove_which_pod_it_is_hears_why(
    tmp_path: Path, status: dict[str, Any], reason: str
) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            slot = w.slot()
            w.api.reviewed[slot.hello.token] = status
            await slot.dial()
            await slot.ended()
            assert reason in slot.refused
            assert (await w.watch()).slots == ()

    run(test())


def test_a_new_slot_waits_for_an_api_server_that_is_away_and_one_seen_before_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler_shim.node_agent.reviews.AGAIN_S", 0.01)

    async def test() -> None:
        async with world(tmp_path) as w:
            known, new = w.slot(), w.slot("default/b", "u2")
            await known.dial()
            await w.states("ready")
            await w.api.down()
            await new.dial()
            await until(lambda: w.agent.reviews.waiting == 1, "the new one waits")
            await known.close()
            await w.states()
            await known.dial()
            await w.states("ready")
            await w.api.up()
            await w.states("ready", "ready")
            for slot in (known, new):
                await slot.close()

    run(test())


def test_lines_that_make_no_sense_end_a_connection_with_the_reason(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            for line, reason in (
                (b"{}", "no message of a slot"),
                (b"x" * 70_000, "a line of more than"),
                (b'{"type":"state","state":"happy"}', "no message of a slot"),
                (b'{"type":"state","state":"serving"}', "state serving without a revision"),
            ):
                slot = w.slot()
                await slot.dial()
                await w.states("ready")
                slot.raw(line)
                await slot.ended()
                assert reason in slot.refused
                await w.states()

    run(test())


@pytest.mark.parametrize(
    "field",
    [{"gpus": 1 << 70}, {"gpus": -1}, {"incarnation": 1 << 70}, {"pool": "p" * 65}, {"addr": "1" * 65}],
)
def test_no_pod_can_make_what_its_agent_tells_unspeakable(tmp_path: Path, field: dict[str, Any]) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            slot = w.slot()
            slot.hello = msgspec.structs.replace(slot.hello, **field)
            await slot.dial()
            await slot.ended()
            assert "no message of a slot" in slot.refused
            assert (await w.watch()).slots == ()

    run(test())


def test_who_dials_and_is_silent_keeps_no_slot_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler_shim.node_agent.door.MOST", 2)
    monkeypatch.setattr("autoscaler_shim.node_agent.door.HELLO_S", 1000.0)

    async def test() -> None:
        async with world(tmp_path) as w:
            silent = [await asyncio.open_unix_connection(w.path) for _ in range(2)]
            slots = [w.slot(f"default/p{n}", f"u{n}") for n in range(4)]
            for number, slot in enumerate(slots, 1):
                await slot.dial()
                await w.states(*["ready"] * number)
            assert await silent[0][0].read() == b"", "the oldest has gone"
            for _, writer in silent:
                writer.close()
            for slot in slots:
                await slot.close()

    run(test())


def test_a_watch_waits_for_a_change_and_needs_the_key(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            begun = await w.watch()
            while not begun.status.capacity.gpus:
                begun = await w.watch(begun.tag)
            slot = w.slot()
            await slot.dial()
            after = await w.states("ready")
            assert after.tag != begun.tag
            status = after.status
            assert (status.node, status.addr) == (NODE, w.agent.addr)
            assert (status.capacity.gpus, status.free.gpus) == (2, 1)
            assert status.capacity.gpu_memory_mib == 2 * 81559
            assert status.slots == (("pool-1", 1),)
            stranger = Rpc("stranger", b"x" * 32)
            with pytest.raises(RpcError):
                await stranger.call(w.agent.addr, WatchSlots(""))
            await stranger.close()
            await slot.close()

    run(test())


def test_a_watch_is_answered_with_news_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler_shim.node_agent.agent.MERGE_S", 0.0)

    async def test() -> None:
        async with world(tmp_path) as w:
            slot = w.slot()
            await slot.dial()
            tag = (await w.states("ready")).tag
            while (news := await w.watch()).tag != tag or not news.status.capacity.gpus:
                tag = news.tag
            heard = listened(w)
            watching = asyncio.ensure_future(w.watch(tag))
            await until(lambda: len(w.agent._watchers) == 1, "it is watched")
            slot.say("ready")
            await until(lambda: len(heard) == 1, "it is heard")
            await w.watch()
            assert not watching.done(), "nothing has changed"
            slot.say("ready", reason="one engine sleeps")
            found = await watching
            assert (found.tag != tag, found.slots[0].reason) == (True, "one engine sleeps")
            await slot.close()

    run(test())


def listened(w: World) -> list[State]:
    """What the account hears from now on."""
    heard: list[State] = []
    said = w.agent.said

    def hear(link: int, state: State) -> None:
        heard.append(state)
        said(link, state)

    w.agent.said = hear  # type: ignore[method-assign]
    return heard


def test_of_a_slot_that_says_too_much_the_latest_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler_shim.node_agent.door.BURST", 5)

    async def test() -> None:
        async with world(tmp_path) as w:
            slot, other = w.slot(), w.slot("default/b", "u2")
            await slot.dial()
            await w.states("ready")
            heard = listened(w)
            for number in range(1000):
                slot.say("ready", reason=f"say {number}")
            await other.dial()
            await until(lambda: heard[-1:] != [] and heard[-1].reason == "say 999", "the latest is heard")
            reasons = [state.reason for state in heard if state.reason]
            assert reasons[:3] == ["say 0", "say 1", "say 2"], "5 at once, with the hello and the first state"
            assert len(reasons) < 10
            slot.raw(b"x" * 70_000)
            await slot.ended()
            assert "a line of more than" in slot.refused
            await other.close()

    run(test())


def test_who_dials_all_the_time_says_no_more_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler_shim.node_agent.door.BURST", 4)
    monkeypatch.setattr("autoscaler_shim.node_agent.door.RATE", 1e-6)
    monkeypatch.setattr("autoscaler_shim.node_agent.door.KEEP", 1)

    async def test() -> None:
        async with world(tmp_path) as w:
            slot = w.slot()
            for _ in range(2):
                await slot.dial()
                await w.states("ready")
                await slot.close()
                await w.states()
            await slot.dial()
            await slot.ended()
            assert "has dialled or said too much" in slot.refused
            other = w.slot("default/b", "u2")
            await other.dial()
            await w.states("ready")
            assert list(w.agent.door._buckets) == ["u2"], "no more are remembered than there may be pods"
            await other.close()

    run(test())


def test_who_watches_hears_at_once_that_the_node_is_cordoned(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            slot = w.slot()
            await slot.dial()
            said = await w.states("ready")
            assert said.status.accepting
            node = w.api.get(NODES, "", NODE)
            assert node is not None
            w.api.put(NODES, {**node, "spec": {"unschedulable": True}})
            heard = said
            while heard.status.accepting:
                heard = await w.watch(heard.tag)
            await slot.close()

    run(test())


def test_another_key_ends_the_agent_which_begins_anew_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler_shim.node_agent.agent.LOOK_S", 0.01)

    async def test() -> None:
        async with world(tmp_path) as w:
            ended = asyncio.ensure_future(w.agent.ended())
            w.api.fail(403, path="galaxy-peers")
            secret = w.api.get(SECRETS, SYSTEM, "galaxy-peers")
            assert secret is not None
            w.api.put(SECRETS, {**secret, "data": {"key": base64.b64encode(b"n" * 32).decode()}})
            with pytest.raises(AnotherKey):
                await ended

    run(test())


def test_the_socket_is_for_all_users_of_the_node_and_metrics_say_what_stands_by(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            assert stat.S_IMODE(w.path.stat().st_mode) == 0o666
            slot = w.slot()
            await slot.dial()
            await w.states("ready")
            base = f"http://127.0.0.1:{w.agent.page.port}"
            async with aiohttp.ClientSession() as http:
                async with http.get(f"{base}/metrics") as answer:
                    text = await answer.text()
                for path in ("/healthz", "/readyz"):
                    async with http.get(f"{base}{path}") as answer:
                        assert answer.status == 200
            assert 'galaxy_standby_slots{pool="pool-1",state="ready"} 1.0' in text
            assert 'galaxy_standby_idle_gpu_seconds_total{pool="pool-1"}' in text
            await slot.close()

    run(test())


def reviews(api: ApiServer) -> int:
    return sum(asked.endswith("/tokenreviews") for asked in api.requests)


def test_a_token_is_asked_for_once_whoever_dials_with_it_and_a_bad_one_not_at_each_dial(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            slot, bad = w.slot(), w.slot("default/b", "u2")
            w.api.reviewed[bad.hello.token] = {"authenticated": False, "error": "token expired"}
            await slot.dial()
            await w.states("ready")
            await slot.close()
            await w.states()
            await slot.dial()
            await w.states("ready")
            assert reviews(w.api) == 1
            for _ in range(5):
                await bad.dial()
                await bad.ended()
                assert "token expired" in bad.refused
            assert reviews(w.api) == w.agent.reviews.asked == 2
            await slot.close()

    run(test())


def test_of_several_that_dial_with_one_token_one_is_asked_for_and_those_who_leave_hinder_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler_shim.node_agent.reviews.AGAIN_S", 0.01)

    async def test() -> None:
        async with world(tmp_path) as w:
            await w.api.down()
            slots = [w.slot() for _ in range(4)]
            for number, slot in enumerate(slots, 1):
                await slot.dial()
                await until(lambda number=number: w.agent.reviews.waiting == number, "it waits")  # type: ignore[misc]
            assert len(w.agent.reviews._asking) == 1
            w.agent.door._unproven.popitem()[0].cancel()
            await until(lambda: w.agent.reviews.waiting == 3, "one has left")
            await w.api.up()
            await w.states("ready")
            assert reviews(w.api) == 1
            for slot in slots:
                await slot.close()
            await until(lambda: not w.agent.reviews._asking, "nothing is kept of the question")

    run(test())
