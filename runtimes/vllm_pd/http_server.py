"""The HTTP server that instances stand on: a listening socket, and uvicorn around an ASGI application.

Never handles signals: when a process ends is for its own main loop to say.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from runtimes.vllm_pd.breaker import Breaker


def listen(host: str | None, port: int) -> socket.socket:
    """Raises OSError, when the port is in use."""
    family = socket.AF_INET6 if ":" in (host or "") else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host or "0.0.0.0", port))
    listener.listen(1024)
    return listener


def http_server(app: Any, drain_seconds: float, log_level: str = "warning") -> Any:
    """`serve(sockets=[...])` it; `should_exit` lets open answers end, for `drain_seconds` at most."""
    import uvicorn

    config = uvicorn.Config(
        Breaker(app),
        http="httptools",
        lifespan="off",
        log_level=log_level,
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )

    class Server(uvicorn.Server):  # type: ignore[misc]
        """Leaves the signals to its owner."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    return Server(config)
