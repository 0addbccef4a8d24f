"""Bursts from zero: which steps an object shows, and a burst through a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from bench.burst import Burst, Observer, fire, steps_of

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
