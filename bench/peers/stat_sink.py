"""Stands for the autoscaler that activators report to: `python -m bench.peers.stat_sink HOST:PORT`."""

from __future__ import annotations

import sys

from aiohttp import web


async def take(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    if not socket.can_prepare(request):
        return web.Response()  # a probe
    await socket.prepare(request)
    async for _ in socket:
        pass
    return socket


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    web.run_app(app, host=host, port=int(port), access_log=None, print=None)
