"""A small HTTP server that stands in for an engine where a test is about the cluster, not about tokens.

    GET/POST /        {"pid", "in_flight", "peak"} after --delay seconds
    GET /stream?n=&gap=   an SSE stream of n events and [DONE]
    GET /stats        requests answered, most in flight at once

It is started as a plain command (no zygote): `python echo_instance.py --port N`. SIGTERM finishes what is open.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from aiohttp import web


class Echo:
    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.in_flight = self.peak = self.answered = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            body = await request.read()
            await asyncio.sleep(float(request.query.get("delay", self.delay_s)))
            self.answered += 1
            return web.json_response(
                {"pid": os.getpid(), "in_flight": self.in_flight, "peak": self.peak, "bytes": len(body)}
            )
        finally:
            self.in_flight -= 1

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", "x-pid": str(os.getpid())}
        )
        await response.prepare(request)
        for k in range(int(request.query.get("n", "10"))):
            await response.write(b"data: %d\n\n" % k)
            await asyncio.sleep(float(request.query.get("gap", "0.02")))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response({"pid": os.getpid(), "answered": self.answered, "peak": self.peak})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.02)
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--until", default="", help="a file that must be there before it listens")
    parser.add_argument("--fail", default="", help="exit with this message instead of serving")
    args = parser.parse_args()
    if args.fail:
        print(args.fail, file=sys.stderr)
        return 2
    echo = Echo(args.delay)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/stream", echo.stream)
    app.router.add_get("/stats", echo.stats)
    app.router.add_route("*", "/", echo.answer)

    async def begin() -> None:
        await asyncio.sleep(args.start_delay)
        while args.until and not os.path.exists(args.until):  # noqa: ASYNC110, ASYNC240  another process makes it
            await asyncio.sleep(0.01)
        await web._run_app(app, host="127.0.0.1", port=args.port, print=None, shutdown_timeout=30)

    asyncio.run(begin())
    return 0


if __name__ == "__main__":
    sys.exit(main())
