"""The router between real sockets: plain engines without a model behind it, an ordinary client before it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from prometheus_client import REGISTRY
from yarl import URL

from kserve_ext.core.two_leg.engines import Engines
from runtimes.two_leg import metrics
from runtimes.two_leg.app import App
from runtimes.two_leg.prefills import LeastLoaded
from runtimes.two_leg.router import Router, Settings
from runtimes.vllm_pd.http_server import http_server, listen
from runtimes.vllm_pd.status import Status
from runtimes.vllm_pd.timeline import Timelines
from tests.support.plain_engine import PlainEngine

LONG = list(range(300))


@dataclass
class Group:
    """Engines, the router before them, and a client."""

    prefills: list[PlainEngine]
    decodes: list[PlainEngine]
    kept: dict[str, str]
    router: Router
    status: Status
    url: str
    client: aiohttp.ClientSession
    engines: Engines = field(default_factory=lambda: Engines(()))

    async def ask(
        self, prompt: Any = LONG, path: str = "/v1/completions", **more: Any
    ) -> aiohttp.ClientResponse:
        headers = more.pop("headers", {})
        body = {"model": "m", "prompt": prompt, "max_tokens": 5, **more}
        answer = await self.client.post(self.url + path, json=body, headers=headers)
        await answer.read()
        return answer

    def nothing_is_left(self) -> bool:
        legs = [
            engine.legs for engines in (self.router.decodes, self.engines) for engine in engines.all.values()
        ]
        busy = [engine.in_flight for engine in (*self.prefills, *self.decodes)]
        return not any(legs) and not any(busy) and not self.kept


@contextlib.asynccontextmanager
async def group(prefills: int = 1, decodes: int = 1, **settings: Any) -> AsyncIterator[Group]:
    kept: dict[str, str] = {}
    ps = [await PlainEngine(f"p{number}", kept).start() for number in range(prefills)]
    ds = [await PlainEngine(f"d{number}", kept).start() for number in range(decodes)]
    engines = Engines([p.url for p in ps])
    leases = LeastLoaded(engines, lambda: 0.0)  # who has failed rests as long as the test lasts
    router = Router(Engines([d.url for d in ds]), leases, Settings(**{"threshold": 64, **settings}))
    status = Status(None)
    status.enter("ready")
    listener = listen("127.0.0.1", 0)
    server = http_server(App(router, status, Timelines()), 5.0, "critical")
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with aiohttp.ClientSession() as client:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Group(ps, ds, kept, router, status, url, client, engines)
    finally:
        server.should_exit = True
        await serving
        await router.drain()
        for engine in (*ps, *ds):
            await engine.stop()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def story(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_nothing_that_a_client_says_of_transfers_reaches_an_engine() -> None:
    async def run() -> None:
        async with group() as g:
            own = {"do_remote_prefill": True, "remote_engine_id": "p0", "remote_block_ids": [[77]]}
            for prompt, path in (
                (LONG, "/v1/completions"),
                ([1, 2], "/v1/completions"),
                ("x", "/v1/embeddings"),
            ):
                await g.ask(prompt, path, kv_transfer_params=own)
            first, *others = g.decodes[0].requests
            assert first["kv_transfer_params"]["remote_block_ids"] != [[77]], "prefill's own"
            assert g.decodes[0].pulled == ["p0-1"]
            assert all("kv_transfer_params" not in body for body in others)
            assert g.nothing_is_left()

    story(run)


def test_the_series_of_engines_that_come_and_go_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_ENGINES", 3)
    for number in range(9):
        metrics.leg("prefill", f"http://gone:{number}", "handed")
        metrics.leg("prefill", "http://stays:1", "handed")
    samples = [sample for family in metrics.LEGS.collect() for sample in family.samples]
    engines = {sample.labels["engine"] for sample in samples}
    assert engines == {"http://gone:7", "http://gone:8", "http://stays:1"}


def test_a_long_prompt_takes_two_legs_and_a_short_one_only_the_second() -> None:
    async def run() -> None:
        async with group() as g:
            answer = await g.ask(
                min_tokens=2, temperature=0.5, headers={"x-request-id": "r-1", "x-of-mine": "1"}
            )
            assert (answer.status, await answer.json()) == (200, {"by": "d0", "text": "xxxxx"})
            word, *facts = answer.headers["x-kv-transfer"].split(";")
            assert (word, facts[0], facts[2]) == ("vllm", "tokens=7", f"prefill={g.prefills[0].url}")
            assert answer.headers["x-request-id"] == "r-1"
            assert [len(answer.headers.getall(name)) for name in ("date", "server", "content-length")] == [
                1
            ] * 3
            (first,), (second,) = g.prefills[0].requests, g.decodes[0].requests
            assert (first["max_tokens"], first["stream"], "min_tokens" in first) == (1, False, False)
            assert (second["max_tokens"], second["min_tokens"], second["temperature"]) == (5, 2, 0.5)
            assert g.decodes[0].pulled == ["p0-1"]
            assert g.prefills[0].ids == g.decodes[0].ids == ["r-1"]
            answer = await g.ask([1, 2, 3])
            assert answer.headers["x-kv-transfer"] == "none;reason=below-threshold"
            assert "kv_transfer_params" not in g.decodes[0].requests[1]
            assert len(g.prefills[0].requests) == 1
            assert g.nothing_is_left()

    story(run)


def test_an_answer_to_head_is_whole_without_its_body() -> None:
    def broken() -> float:
        return REGISTRY.get_sample_value("galaxy_two_leg_requests_total", {"outcome": "broken"}) or 0.0

    async def run() -> None:
        async with group() as g:
            before = broken()
            async with g.client.head(g.url + "/v1/models") as answer:
                assert answer.status == 200
                assert int(answer.headers["content-length"])
            await until(g.nothing_is_left)
            async with g.client.get(g.url + "/v1/models") as answer:
                assert await answer.read()
            assert broken() == before

    story(run)


def test_a_path_stays_one_line() -> None:
    async def run() -> None:
        async with group() as g:
            forged = "/openai/v1/models%20HTTP/1.1%0d%0aHost:%20d%0d%0a%0d%0aGET%20/v1/models"
            async with g.client.get(URL(g.url + forged, encoded=True)) as answer:
                assert answer.status == 404
            async with g.client.get(g.url + "/openai/v1/models?limit=1") as answer:
                assert answer.status == 200

    story(run)


@pytest.mark.parametrize("path", ["/v1/completions", "/openai/v1/chat/completions"])
def test_a_stream_passes_as_it_comes(path: str) -> None:
    async def run() -> None:
        async with group() as g:
            messages = [{"role": "user", "content": "word " * 200}]
            answer = await g.ask(
                "word " * 200, path, messages=messages, stream=True, stream_options={"include_usage": True}
            )
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers["x-kv-transfer"].startswith("vllm;")
            assert await answer.text() == "".join(f"data: {n}\n\n" for n in range(5)) + "data: [DONE]\n\n"
            assert "stream_options" not in g.prefills[0].requests[0]
            assert g.decodes[0].requests[0]["stream_options"] == {"include_usage": True}
            assert g.nothing_is_left()

    story(run)


def test_what_is_not_generation_goes_to_a_decode_engine_as_it_is() -> None:
    async def run() -> None:
        async with group() as g:
            async with g.client.get(g.url + "/v1/models?x=1") as answer:
                assert await answer.json() == {"data": [{"id": "plain"}], "by": "d0", "query": "x=1"}
                assert "x-kv-transfer" not in answer.headers
            async with g.client.get(g.url + "/v1/nothing") as answer:
                assert answer.status == 404
            async with g.client.post(
                g.url + "/v1/completions", data=b"{", headers={"content-type": "x"}
            ) as answer:
                assert answer.headers["x-kv-transfer"] == "none;reason=unreadable"
            assert not g.prefills[0].requests

    story(run)


@pytest.mark.parametrize(
    ("fault", "reason"), [(500, "prefill-failed"), (400, "prefill-rejected"), ("close", "prefill-failed")]
)
def test_prefill_that_fails_leaves_decode_to_compute_alone(fault: int | str, reason: str) -> None:
    async def run() -> None:
        async with group() as g:
            g.prefills[0].fault = fault
            answer = await g.ask()
            assert (answer.status, answer.headers["x-kv-transfer"]) == (200, f"none;reason={reason}")
            again = (await g.ask()).headers["x-kv-transfer"]
            assert again.startswith("vllm;" if fault == 400 else "none;reason=backing-off")
            assert g.nothing_is_left()

    story(run)


def test_prefill_that_cannot_be_reached_or_keeps_nothing() -> None:
    async def run() -> None:
        async with group(prefills=2) as g:
            gone, mute = g.prefills
            await gone.stop()
            mute.fault = 200
            said = [(await g.ask()).headers["x-kv-transfer"] for _ in range(2)]
            assert said == ["none;reason=prefill-failed", "none;reason=nothing-handed"]
            assert g.nothing_is_left()

    story(run)


def test_prefill_that_is_too_slow() -> None:
    async def run() -> None:
        async with group(prefill_s=0.3) as g:
            g.prefills[0].fault = "hang"
            assert (await g.ask()).headers["x-kv-transfer"] == "none;reason=prefill-timeout"
            await until(lambda: g.prefills[0].cancelled == 1 or not g.prefills[0].requests)
            await until(g.nothing_is_left)

    story(run)


def test_required_is_refused_with_the_reason() -> None:
    async def run() -> None:
        async with group(required=True) as g:
            g.prefills[0].fault = 500
            answer = await g.ask()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "prefill-failed" in (await answer.json())["error"]["message"]
            assert (await g.ask([1])).status == 200, "nothing would be transferred for it"

    story(run)


def test_a_decode_engine_that_is_gone_is_passed_over_and_the_kv_goes_to_the_next() -> None:
    async def run() -> None:
        async with group(decodes=2) as g:
            await g.decodes[0].stop()
            answer = await g.ask()
            assert (await answer.json())["by"] == "d1"
            assert answer.headers["x-kv-transfer"].startswith("vllm;")
            assert g.decodes[1].pulled == ["p0-1"]
            assert g.nothing_is_left()

    story(run)


def test_a_decode_engine_that_breaks_is_followed_by_another_that_computes_alone() -> None:
    async def run() -> None:
        async with group(decodes=2) as g:
            g.decodes[0].fault = "close"
            answer = await g.ask()
            assert (await answer.json())["by"] == "d1"
            assert answer.headers["x-kv-transfer"] == "none;reason=decode-failed"
            # d0 still listens, so it might be pulling: only prefill's lease may free what it was to pull.
            assert list(g.kept) == ["p0-1"]

    story(run)


def test_kv_that_a_dead_decode_engine_was_to_pull_is_given_back_through_another() -> None:
    async def run() -> None:
        async with group(decodes=2) as g:
            g.decodes[0].fault = "hang"
            asking = asyncio.create_task(g.ask())
            await until(lambda: g.decodes[0].in_flight)
            g.decodes[0].kept = {}  # it dies without freeing anything
            await g.decodes[0].stop()
            answer = await asking
            assert (answer.status, (await answer.json())["by"]) == (200, "d1")
            await until(lambda: not g.kept)

    story(run)


def test_an_error_of_the_pull_is_computed_again_and_what_is_refused_is_the_clients() -> None:
    async def run() -> None:
        async with group() as g:
            g.decodes[0].fault = 500
            answer = await g.ask()
            assert (answer.status, answer.headers["x-kv-transfer"]) == (200, "none;reason=decode-failed")
            g.decodes[0].fault = 422
            answer = await g.ask()
            assert (answer.status, await answer.json()) == (422, {"error": "d0 says 422"})
            await until(lambda: not g.kept)

    story(run)


def test_no_decode_engine_says_what_to_do() -> None:
    async def run() -> None:
        async with group() as g:
            await g.decodes[0].stop()
            answer = await g.ask([1, 2])
            assert answer.status == 503
            message = (await answer.json())["error"]["message"]
            assert g.decodes[0].url in message
            assert "--decode" in message

    story(run)


@pytest.mark.parametrize("leg", ["prefill", "decode", "stream"])
def test_a_client_that_goes_ends_the_leg_and_frees_prefill(leg: str) -> None:
    async def run() -> None:
        async with group() as g:
            engine = (g.prefills if leg == "prefill" else g.decodes)[0]
            more: dict[str, Any] = {"stream": True, "endless": True}
            if leg != "stream":
                engine.fault, more = "hang", {}
            asking = asyncio.create_task(g.ask(**more))
            await until(lambda: engine.requests and engine.in_flight)
            if leg == "stream":
                await until(lambda: engine.pulled)
            asking.cancel()
            await until(lambda: engine.cancelled == 1)
            await until(g.nothing_is_left)

    story(run)


def test_an_answer_that_breaks_off_cannot_be_taken_for_a_whole_one() -> None:
    async def run() -> None:
        async with group() as g:
            g.decodes[0].fault = "cut"
            events = (await (await g.ask(stream=True)).text()).split("\n\n")
            assert events[:2] == ["data: 0", "data: 1"]
            assert json.loads(events[2].removeprefix("data: "))["error"]["type"] == "engine_lost"
            assert "[DONE]" not in "".join(events)
            g.decodes[0].fault = "cut"
            with pytest.raises(aiohttp.ClientError):
                await g.ask()
            await until(g.nothing_is_left)

    story(run)


def test_load_is_spread_over_both_kinds() -> None:
    async def run() -> None:
        async with group(prefills=2, decodes=3) as g:
            for engine in g.decodes:
                engine.fault = "hang"
            asking = [asyncio.create_task(g.ask()) for _ in range(3)]
            await until(lambda: all(engine.in_flight for engine in g.decodes))
            assert all(engine.requests for engine in g.prefills)
            for engine in g.decodes:
                engine.go.set()
            await asyncio.gather(*asking)
            assert g.nothing_is_left()

    story(run)


def test_clients_that_hang_up_at_any_moment_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.two_leg.router.LINGER_S", 3.0)  # however slow this machine is

    async def run() -> None:
        async with group(prefills=2, decodes=2) as g:

            async def one(number: int) -> None:
                asking = asyncio.create_task(g.ask(stream=number % 3 == 0))
                for _ in range(number % 40):
                    await asyncio.sleep(0)
                if number % 2:
                    asking.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await asking
                else:
                    assert (await asking).status == 200

            await asyncio.gather(*(one(number) for number in range(160)))
            await until(g.nothing_is_left)

    story(run)


def test_metrics_timeline_and_readiness() -> None:
    async def run() -> None:
        async with group() as g:
            await g.ask(headers={"x-request-id": "told"})
            async with g.client.get(g.url + "/galaxy/requests/told") as answer:
                facts = await answer.json()
            names = [name for name, _, _ in facts["marks"]]
            assert names == [
                "received",
                "decided",
                "prefill_leased",
                "prefill_start",
                "prefill_end",
                "decode_start",
                "decode_answered",
                "answered",
            ]
            assert facts["header"].startswith("vllm;")
            async with g.client.get(g.url + "/metrics") as answer:
                text = await answer.text()
            assert (
                f'galaxy_two_leg_legs_total{{engine="{g.prefills[0].url}",leg="prefill",outcome="handed"}} 1.0'
                in text
            )
            for phase, status in (("ready", 200), ("draining", 503)):
                g.status.enter(phase)  # type: ignore[arg-type]
                async with g.client.get(g.url + "/ready") as answer:
                    assert answer.status == status

    story(run)
