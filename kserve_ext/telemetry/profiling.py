"""The profiles of this process on Go's paths and port: /debug/pprof/{profile,heap,goroutine}, for `go tool pprof`.

Listens only while it is switched on, on a thread of its own, so that a loop that is stuck can be looked at. With
?seconds=N a profile is taken for so long; ?debug=1 has words instead, for heap and goroutine. One profile at a time.
In Knative: observability/runtime/pprof.go of knative.dev/pkg, where the port is there always and answers 404.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from kserve_ext.telemetry import profiles
from kserve_ext.wire.pprof import encode

log = logging.getLogger(__name__)

PORT: Final = 8008
MOST_S: Final = 300.0
#: So often its thread looks whether to end; who switches it off, with the loop, waits for that.
LOOK_S: Final = 0.02
_SECONDS: Final = {"profile": 30.0, "heap": 5.0}
_INDEX: Final = """\
profile    CPU for ?seconds=30, pprof
heap       allocated within ?seconds=5 and still there, pprof; ?debug=1: objects by type
goroutine  tasks and threads with their stacks, pprof; ?debug=1: the same to read
cmdline    the command line

go tool pprof http://localhost:{port}/debug/pprof/profile?seconds=10
"""


class Profiling:
    """`enable` as often as one likes; `close` at the end."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._wanted = port
        self._loop = asyncio.get_running_loop()
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """0: it doesn't listen."""
        return self._server.server_address[1] if self._server is not None else 0

    def enable(self, enabled: bool) -> None:
        if enabled == (self._server is not None):
            return
        if not enabled:
            self.close()
            log.info("profiles are switched off")
            return
        try:
            self._server = _Server(self._host, self._wanted, self._loop)
        except OSError as error:
            log.error(
                "no profiles: can't listen on port %d (%s): set PROFILING_PORT to a free one",
                self._wanted,
                error,
            )
            return
        run = self._server.serve_forever
        threading.Thread(target=run, args=(LOOK_S,), name="profiling", daemon=True).start()
        log.info("profiles are switched on, on port %d", self.port)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stopped.set()
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.loop = loop
        self.sampler = profiles.Sampler()
        self.busy = threading.Lock()
        self.stopped = threading.Event()
        try:
            super().__init__((host, port), _Handler)
        except OSError:
            self.sampler.close()
            raise

    def server_close(self) -> None:
        super().server_close()
        self.sampler.close()

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a profile was not delivered", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 15.0

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        what = (
            url.path.removeprefix("/debug/pprof").strip("/") if url.path.startswith("/debug/pprof") else "?"
        )
        if what == "":
            self._text(200, _INDEX.format(port=self.server.server_address[1]))
        elif what == "cmdline":
            self._text(200, "\0".join([sys.executable, *sys.argv]))
        elif what == "heap" and query.get("debug", "0") != "0":
            self._text(200, profiles.heap_text())
        elif what == "goroutine" and query.get("debug", "0") != "0":
            self._text(200, profiles.goroutines_text(self.server.loop))
        elif what in ("profile", "heap", "goroutine"):
            self._profile(what, query)
        else:
            self._text(404, "not here; /debug/pprof/ says what is\n")

    def _profile(self, what: str, query: dict[str, str]) -> None:
        try:
            seconds = float(query.get("seconds", _SECONDS.get(what, 0.0)))
            if not 0.0 <= seconds <= MOST_S:
                raise ValueError
        except ValueError:
            self._text(400, f"seconds: a number up to {MOST_S:g}\n")
            return
        if not self.server.busy.acquire(blocking=False):
            self._text(503, "another profile is being taken: try again when it is done\n")
            return
        try:
            if what == "profile":
                profile = self.server.sampler.sample(seconds, self.server.stopped.wait)
            elif what == "heap":
                profile = profiles.heap(seconds, self.server.stopped.wait)
            else:
                profile = profiles.goroutines(self.server.loop)
        finally:
            self.server.busy.release()
        self._answer(200, gzip.compress(encode(profile), 1), "application/octet-stream")

    def _text(self, status: int, text: str) -> None:
        self._answer(status, text.encode(), "text/plain; charset=utf-8")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The log has other things to say."""
