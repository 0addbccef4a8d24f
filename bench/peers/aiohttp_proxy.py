"""A plain aiohttp reverse proxy, as one would write it: a web handler around a client session, on uvloop."""

from __future__ import annotations

import sys

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length"}


def app(target: str) -> web.Application:
    session: aiohttp.ClientSession

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = CIMultiDict((n, v) for n, v in request.headers.items() if n.lower() not in HOP)
        body = request.content if request.can_read_body else None
        async with session.request(
            request.method, f"http://{target}{request.rel_url}", headers=headers, data=body
        ) as answer:
            passed = CIMultiDict((n, v) for n, v in answer.headers.items() if n.lower() not in HOP)
            if "Transfer-Encoding" not in answer.headers:
                return web.Response(status=answer.status, headers=passed, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    async def start(_: web.Application) -> None:
        nonlocal session
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, skip_auto_headers=["User-Agent"]
        )

    async def stop(_: web.Application) -> None:
        await session.close()

    made = web.Application()
    made.router.add_route("*", "/{path:.*}", forward)
    made.on_startup.append(start)
    made.on_cleanup.append(stop)
    return made


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    uvloop.install()
    web.run_app(app(sys.argv[2]), host=host, port=int(port), access_log=None, print=None)
