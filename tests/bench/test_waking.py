"""Bursts from zero: which steps an object shows, and a burst through a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bench.waking import Burst, Observer, fire, logged, read_logs, steps_of

READY = {"conditions": [{"type": "Ready", "status": "True"}]}
NOT_READY = {"conditions": [{"type": "Ready", "status": "False"}]}


@pytest.mark.parametrize(
    ("kind", "obj", "steps"),
    [
        ("deployments", {"spec": {"replicas": 0}}, ()),
        ("deployments", {"spec": {"replicas": 1}}, ("scaled",)),
        ("pods", {"spec": {}, "status": {}}, ("created",)),
        ("pods", {"spec": {"nodeName": "n"}, "status": NOT_READY}, ("created", "bound")),
        ("pods", {"spec": {"nodeName": "n"}, "status": READY}, ("created", "bound", "ready")),
        ("endpoints", {}, ()),
        ("endpoints", {"subsets": [{"notReadyAddresses": [{"ip": "10.0.0.1"}]}]}, ()),
        ("endpoints", {"subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}, ("endpoint",)),
    ],
)
def test_steps_of_objects(kind: str, obj: dict[str, Any], steps: tuple[str, ...]) -> None:
    assert steps_of(kind, obj) == steps


STOCK = (
    '{"severity":"INFO","timestamp":"2026-01-02T03:04:05.375137431Z","logger":"autoscaler",'
    '"message":"Scaling from 0 to 1","knative.dev/key":"default/a-00001"}'
)
OURS = '{"timestamp": "2026-01-02T03:04:06.500Z", "message": "default/a-00001: activating, want 1 (demand)"}'
AT = 1767323045.0  # 2026-01-02T03:04:05Z


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (STOCK, AT + 0.375137),
        (OURS, AT + 1.5),
        (STOCK.replace("from 0 to 1", "from 1 to 0"), None),
        (OURS.replace("activating", "active"), None),
        ("panic: runtime error", None),
        ("[1]", None),
        ("{}", None),
    ],
)
def test_scales_from_zero_in_both_logs(line: str, at: float | None) -> None:
    found = logged(line)
    if at is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == "a-00001"
        assert found[1] == pytest.approx(at, abs=1e-5)


def test_of_the_logs_only_what_came_after_the_request_counts(tmp_path: Path) -> None:
    (tmp_path / "pod-knative-serving-autoscaler-x-autoscaler.log").write_text(f"{STOCK}\n{OURS}\n")
    burst = Burst(asked={"a-00001": AT + 1.0})
    read_logs(tmp_path, burst)
    assert burst.seen["logged"] == {"a-00001": pytest.approx(AT + 1.5)}


def test_only_good_answers_count() -> None:
    async def answer(request: web.Request) -> web.Response:
        bad = request.headers["Knative-Serving-Revision"] == "b-00001"
        return web.Response(status=502 if bad else 200)

    async def run() -> Burst:
        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        observer = Observer()
        try:
            burst = await fire(observer, ["a-00001", "b-00001", "c-00001"], f"{host}:{port}", linger_s=0)
        finally:
            await runner.cleanup()
        assert observer.burst is None
        return burst

    burst = asyncio.run(run())
    assert burst.outcomes == {"200": 2, "502": 1}
    assert set(burst.asked) == {"a-00001", "b-00001", "c-00001"}
    assert set(burst.seen["answered"]) == {"a-00001", "c-00001"}
    assert burst.all_s() >= burst.answers_s()[-1] >= burst.answers_s()[0] >= 0


def test_zero_is_when_no_object_shows_more() -> None:
    labels = {"serving.knative.dev/revision": "a-00001"}
    pod = {"metadata": {"name": "p", "labels": labels}, "spec": {}}
    scaled = {"metadata": {"name": "d", "labels": labels}, "spec": {"replicas": 1}}
    unscaled = {"metadata": {"name": "d", "labels": labels}, "spec": {"replicas": 0}}

    async def run() -> list[bool]:
        observer = Observer()
        observer.changed("pods", "SET", pod)
        observer.changed("deployments", "SET", scaled)
        waiting = asyncio.create_task(observer.wait_zero(["a-00001"], 30))
        seen = []
        for event in (("pods", "GONE", pod), ("deployments", "SET", unscaled)):
            observer.changed(*event)
            for _ in range(3):
                await asyncio.sleep(0)
            seen.append(waiting.done())
        await waiting
        return seen

    assert asyncio.run(run()) == [False, True]
