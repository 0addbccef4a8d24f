"""The informer over cuts, forgotten history and an absent server: its copy ends equal to what the server has."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from kserve_ext.kube import informer as informer_module
from kserve_ext.kube.client import Client, KubeObject
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import PODS
from tests.support.api_server import ApiServer


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, informer_module.log.name)
    monkeypatch.setattr(informer_module, "BACKOFF_S", (0.01, 0.05))


class Heard:
    """What an informer told, in order, as "+x 1", "~x 1>2", "-x 2"."""

    def __init__(self, informer: Informer) -> None:
        self.said: list[str] = []
        self.informer = informer
        self._more = asyncio.Event()
        informer.add_handler(self)

    def __call__(self, old: KubeObject | None, new: KubeObject | None) -> None:
        name = (new or old or {})["metadata"]["name"]
        values = [obj["spec"]["v"] for obj in (old, new) if obj is not None]
        sign = "+" if old is None else "-" if new is None else "~"
        self.said.append(f"{sign}{name} {'>'.join(map(str, values))}")
        self._more.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            self._more.clear()
            await self._more.wait()

    async def hears(self, *said: str) -> None:
        await self.until(lambda: len(self.said) >= len(said))
        assert self.said == list(said)
        self.said.clear()


class Saying(logging.Handler):
    """The next time that an informer logs this, as something to wait for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._said = asyncio.Event()
        informer_module.log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._said.set()

    async def wait(self) -> None:
        await self._said.wait()
        informer_module.log.removeHandler(self)


Scenario = Callable[[ApiServer, Informer, Heard], Awaitable[None]]


def play(scenario: Scenario) -> None:
    async def main() -> None:
        async with ApiServer() as server, server.client() as client:
            put(server, "x", 1)
            informer = Informer(client, PODS, "a")
            heard = Heard(informer)
            informer.start()
            await informer.synced.wait()
            await heard.hears("+x 1")
            await server.until(lambda: server.watches)
            try:
                await scenario(server, informer, heard)
            finally:
                await informer.stop()

    uvloop.run(main())


def put(server: ApiServer, name: str, value: int, **labels: str) -> None:
    server.put(PODS, {"metadata": {"name": name, "namespace": "a", "labels": labels}, "spec": {"v": value}})


def test_changes_are_told_with_what_was_before() -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        put(server, "y", 1)
        put(server, "y", 2)
        put(server, "y", 2)
        server.remove(PODS, "a", "y")
        await heard.hears("+y 1", "~y 1>2", "-y 2")
        assert list(informer.objects) == [("a", "x")]
        found = informer.get("a", "x")
        assert found is not None
        assert found["spec"] == {"v": 1}

    play(scenario)


@pytest.mark.parametrize("politely", [True, False])
def test_a_cut_watch_is_continued_without_a_list(politely: bool) -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        server.cut(politely=politely)
        put(server, "x", 2)
        await heard.hears("~x 1>2")
        assert [asked for asked in server.requests if "pods" in asked].count(
            "GET /api/v1/namespaces/a/pods"
        ) == 3

    play(scenario)


def test_after_forgotten_history_what_vanished_is_told_as_deleted() -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        put(server, "y", 1)
        await heard.hears("+y 1")
        server.hold()
        server.cut()
        server.remove(PODS, "a", "y")
        server.remove(PODS, "a", "x")
        put(server, "x", 7)  # another x
        put(server, "z", 1)
        server.compact()
        server.release()
        await heard.hears("-y 1", "-x 1", "+x 7", "+z 1")
        assert set(informer.objects) == {("a", "x"), ("a", "z")}

    play(scenario)


def test_a_bookmark_saves_the_list() -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        server.put(PODS, {"metadata": {"name": "elsewhere", "namespace": "b"}, "spec": {"v": 1}})
        server.bookmark()
        put(server, "x", 2)
        await heard.hears("~x 1>2")
        server.bookmark()
        server.put(PODS, {"metadata": {"name": "elsewhere", "namespace": "b"}, "spec": {"v": 2}})
        server.bookmark()
        # Everything before the bookmark may now be forgotten.
        await server.until(lambda: all(watch.events.empty() for watch in server.watches))
        server.compact()
        server.cut(politely=True)
        put(server, "x", 3)
        await heard.hears("~x 2>3")
        assert server.requests.count("GET /api/v1/namespaces/a/pods") == 3

    play(scenario)


def test_an_absent_server_leaves_the_copy_as_it_was() -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        complaint = Saying("try again")
        await server.down()
        put(server, "x", 2)
        server.remove(PODS, "a", "x")
        await complaint.wait()
        assert list(informer.objects) == [("a", "x")]
        assert "NoAnswer" in informer.problem
        await server.up()
        await heard.hears("~x 1>2", "-x 2")
        assert informer.problem == ""

    play(scenario)


def test_contact_is_had_again_when_the_watch_is_open_if_quiet() -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        complaint, again = Saying("try again"), Saying("in contact again")
        server.fail(503)
        server.cut(politely=True)
        await complaint.wait()
        assert informer.problem != ""
        await again.wait()
        assert informer.problem == ""

    play(scenario)


def test_forgotten_history_after_an_outage_is_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []

    def pause(failures: int, least_s: float, most_s: float, chance: float) -> float:
        pauses.append(failures)
        return 0.001

    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        monkeypatch.setattr(informer_module, "pause_s", pause)
        server.fail(503, times=4)
        server.cut()
        put(server, "x", 2)
        server.compact()
        await heard.hears("~x 1>2")
        assert pauses[-1] == 4 or pauses[-1] == 5
        assert len(pauses) == pauses[-1]  # none between Gone and the list

    play(scenario)


def test_a_server_that_calls_every_version_gone_is_not_asked_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[int] = []
    enough = asyncio.Event()

    def pause(failures: int, least_s: float, most_s: float, chance: float) -> float:
        pauses.append(failures)
        if len(pauses) == 5:
            enough.set()
        return 0.001

    async def main() -> None:
        monkeypatch.setattr(informer_module, "pause_s", pause)
        async with ApiServer() as server, server.client() as client:
            put(server, "x", 1)
            server.compact()
            server.objects.version -= 1  # so that what the list says is already forgotten
            informer = Informer(client, PODS)
            informer.start()
            await enough.wait()
            await informer.stop()

    uvloop.run(main())
    assert pauses[:5] == [1, 2, 3, 4, 5]


def test_refused_lists_are_tried_again_and_synced_says_when_it_worked() -> None:
    async def main() -> None:
        async with ApiServer() as server, server.client() as client:
            server.fail(403, times=3, reason="Forbidden")
            informer = Informer(client, PODS)
            complaint = Saying("try again")
            informer.start()
            await complaint.wait()
            assert not informer.synced.is_set()
            assert informer.problem.startswith("Forbidden")
            await informer.synced.wait()
            assert informer.problem == ""
            await informer.stop()

    uvloop.run(main())


def test_a_handler_that_raises_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        def broken(old: KubeObject | None, new: KubeObject | None) -> None:
            raise RuntimeError("broken")

        informer.add_handler(broken)
        late = Heard(informer)
        assert late.said == ["+x 1"]
        put(server, "y", 1)
        await late.hears("+x 1", "+y 1")
        await heard.hears("+y 1")

    play(scenario)
    assert "taking in a change of ('a', 'y') failed" in caplog.text


def test_what_cannot_be_taken_in_leads_to_a_new_list(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        for watch in server.watches:
            watch.events.put_nowait({"type": "MODIFIED", "object": {"kind": "Pod"}})
        put(server, "y", 1)
        await heard.hears("+y 1")
        assert server.requests.count("GET /api/v1/namespaces/a/pods") >= 3

    play(scenario)
    assert "taking in the server's answer failed" in caplog.text


def test_only_what_is_needed_is_kept() -> None:
    def keep(obj: KubeObject) -> KubeObject:
        return {"metadata": obj["metadata"], "spec": {"v": obj["spec"]["v"]}}

    async def main() -> None:
        async with ApiServer() as server, server.client() as client:
            fields = [{"manager": "kubectl", "operation": "Update"}]
            metadata = {"name": "x", "namespace": "a", "managedFields": fields}
            server.put(PODS, {"metadata": metadata, "spec": {"v": 1, "much": "more"}})
            informer = Informer(client, PODS, keep=keep)
            informer.start()
            await informer.synced.wait()
            kept = informer.get("a", "x")
            assert kept is not None
            assert kept["spec"] == {"v": 1}
            assert "managedFields" not in kept["metadata"]
            await informer.stop()

    uvloop.run(main())


def test_objects_enter_and_leave_by_their_labels() -> None:
    async def main() -> None:
        async with ApiServer() as server, server.client() as client:
            informer = Informer(client, PODS, labels="app=x")
            heard = Heard(informer)
            informer.start()
            await informer.synced.wait()
            put(server, "x", 1)
            put(server, "x", 2, app="x")
            put(server, "x", 3)
            await heard.hears("+x 2", "-x 2")
            await informer.stop()

    uvloop.run(main())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_copy_ends_equal_and_the_story_is_consistent(seed: int) -> None:
    """Writes, cuts, forgotten history and restarts at random: each object's story starts with its birth, each change
    begins where the last one ended, and the end is what the server has."""

    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        chance = random.Random(seed)
        heard.said = ["+x 1"]
        for step in range(150):
            name = chance.choice("wxyz")
            match chance.choices(
                ["put", "remove", "cut", "end", "compact", "restart", "turn"], [9, 4, 1, 1, 1, 0.2, 5]
            )[0]:
                case "put":
                    put(server, name, step)
                case "remove" if server.get(PODS, "a", name):
                    server.remove(PODS, "a", name)
                case "cut":
                    server.cut()
                case "end":
                    server.cut(politely=True)
                case "compact":
                    server.compact()
                case "restart":
                    await server.down()
                    await server.up()
                case "turn":
                    for _ in range(chance.randrange(30)):
                        await asyncio.sleep(0)
        put(server, "last", 0)
        await heard.until(lambda: heard.said[-1] == "+last 0")
        assert informer.objects.keys() == server.objects.of(PODS).keys()
        for (_, name), obj in server.objects.of(PODS).items():
            kept = informer.get("a", name)
            assert kept is not None
            assert kept["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]
        for name in "wxyz":
            values: str | None = None
            for said in (said for said in heard.said if said[1] == name and said[2] == " "):
                before, _, after = said[3:].rpartition(">")
                if said[0] == "+":
                    assert values is None
                elif said[0] == "~":
                    assert before == values
                else:
                    assert after == values
                values = None if said[0] == "-" else after

    play(scenario)


def test_stopping_is_final_and_twice_is_once() -> None:
    async def scenario(server: ApiServer, informer: Informer, heard: Heard) -> None:
        await informer.stop()
        await informer.stop()
        await server.until(lambda: not server.watches)

    play(scenario)


def test_a_client_may_be_shared_by_many_informers() -> None:
    async def main() -> None:
        async with ApiServer() as server, server.client() as client:
            informers = [Informer(client, PODS, f"ns{k}") for k in range(120)]
            for informer in informers:
                informer.start()
            await asyncio.gather(*(informer.synced.wait() for informer in informers))
            await server.until(lambda: len(server.watches) == 120)
            client_of: Client = informers[0].client
            assert client_of.session.requests == 240
            for informer in informers:
                await informer.stop()

    uvloop.run(main())
