"""Plain engines that speak kv_transfer_params, without a model: what prefill keeps is a set, to pull is to take from
it.

As vLLM's do: a decode engine frees what it was given when it pulls, when it refuses the request, and when its
client goes. An engine can be told what goes wrong with its next request. `python -m tests.support.plain_engine
--host H --port N` runs one as a process: what another process keeps is pulled over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from typing import Any

from aiohttp import ClientSession, web


class PlainEngine:
    """Run several in one loop; those of a group share `kept`."""

    def __init__(self, name: str, kept: dict[str, str]) -> None:
        self.name = name
        self.kept = kept  # id of kept KV -> prompt
        self.requests: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.pulled: list[str] = []
        self.cancelled = 0
        self.in_flight = 0
        #: What becomes of the next request: a status, "close" (before the head), "cut" (in the body), "hang".
        self.fault: int | str | None = None
        self.go = asyncio.Event()  # ends a "hang"
        self.healthy = True
        self.unanswered = 0  # so many of the next health checks
        self.url = ""
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> PlainEngine:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/pull/{key}", self._pull)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        if self.unanswered:
            self.unanswered -= 1
            await asyncio.Event().wait()
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=f'vllm:kv_cache_usage_perc{{engine="0"}} {float(bool(self.kept))}\n')

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "plain"}], "by": self.name, "query": request.query_string})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        params = body.get("kv_transfer_params") or {}
        key = params.get("remote_request_id", "")
        if str(body.get("model")).startswith("galaxy-release"):
            self.kept.pop(key, None)
            return web.json_response({"error": "no such model"}, status=404)
        self.requests.append(body)
        self.ids.append(request.headers.get("x-request-id", ""))
        self.in_flight += 1
        try:
            return await self._answer(request, body, params, key)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.kept.pop(key, None)
            raise
        finally:
            self.in_flight -= 1

    async def _answer(
        self, request: web.Request, body: dict[str, Any], params: dict[str, Any], key: str
    ) -> web.StreamResponse:
        fault, self.fault = self.fault, None
        if isinstance(fault, int):
            if 400 <= fault < 500:
                self.kept.pop(key, None)
            return web.json_response({"error": f"{self.name} says {fault}"}, status=fault)
        if fault == "hang":
            await self.go.wait()
        if fault == "close" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if params.get("do_remote_decode"):
            kept = f"{self.name}-{next(self._numbers)}"
            self.kept[kept] = json.dumps(body.get("prompt") or body.get("messages"))
            handed = {
                "do_remote_prefill": True,
                "remote_block_ids": [[1]],
                "remote_request_id": kept,
                "url": self.url,
            }
            return web.json_response({"kv_transfer_params": {**handed, "remote_num_tokens": 7}})
        if params.get("do_remote_prefill"):
            prompt = self.kept.pop(key, None) or await self._fetch(f"{params['url']}/pull/{key}")
            assert prompt == json.dumps(body.get("prompt") or body.get("messages"))
            self.pulled.append(key)
        if body.get("stream"):
            return await self._stream(request, body, fault)
        if fault == "cut":
            return await self._cut_off(request)
        return web.json_response({"by": self.name, "text": "x" * body.get("max_tokens", 1)})

    async def _pull(self, request: web.Request) -> web.Response:
        return web.Response(text=self.kept.pop(request.match_info["key"]))

    async def _fetch(self, url: str) -> str:
        async with ClientSession() as session, session.get(url) as answer:
            return await answer.text()

    async def _cut_off(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "99"})
        await response.prepare(request)
        await response.write(b'{"by": ')
        if request.transport is not None:
            request.transport.close()
        return response

    async def _stream(self, request: web.Request, body: dict[str, Any], fault: object) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(body.get("max_tokens", 4)):
            await response.write(b"data: %d\n\n" % number)
            if fault == "cut" and number == 1 and request.transport is not None:
                request.transport.close()
                await asyncio.sleep(0)
                return response
        if body.get("endless"):
            await self.go.wait()
        await response.write(b"data: [DONE]\n\n")
        return response


async def serve(name: str, port: int) -> None:
    await PlainEngine(name, {}).start(port)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--name", default="plain")
    given = parser.parse_args()
    asyncio.run(serve(given.name, given.port))
