"""Streams that live long: what becomes of them when the activator restarts, and when their time is over."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from e2e.behaviours import http2
from e2e.behaviours.calls import CALL_S, Calls, Conversation, channel
from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Backend
from e2e.behaviours.parts import restart, system_pods, wait_gone
from e2e.behaviours.services import deployed, template
from e2e.stack.api import Api, wait_until
from e2e.stack.implementations import whose
from e2e.stack.place import SYSTEM_NAMESPACE

ALWAYS = {"target-burst-capacity": "-1", "min-scale": "1"}
#: The activator serves for 45 s after SIGTERM before it ends what it can.
DRAIN_S = 90


class Echo:
    """A stream of an HTTP/2 connection to /echo, whose body is sent piece by piece."""

    def __init__(self, connection: http2.Connection) -> None:
        self.connection = connection
        self.stream = connection.request("POST", "/echo", end=False)
        self._sent = b""

    def turn(self, piece: bytes) -> None:
        self._sent += piece
        self.connection.send(self.stream, piece)
        self.connection.wait("its echo", lambda: self.connection.data[self.stream] == self._sent)

    def end(self) -> int:
        self.connection.send(self.stream, b"", end=True)
        self.connection.wait("the end", lambda: self.stream in self.connection.ended)
        return self.connection.status[self.stream]


def socket_to(found: Backend) -> ClientConnection:
    headers = {name: value for name, value in found.headers.items() if name != "Host"}
    return connect(f"ws://{found.address}/socket", additional_headers=headers, open_timeout=CALL_S)


def turn(socket: ClientConnection, message: str) -> str | bytes:
    socket.send(message)
    return socket.recv(CALL_S)


def test_what_is_under_way_outlives_a_restart_of_the_activator(
    implementation: str, api: Api, client: Client
) -> None:
    """Over connections that the former activator has, while it drains. Ours says GOAWAY then, and ends once all have
    ended; Knative's doesn't know any more what was upgraded, HTTP/2 without TLS included, and cuts it.

    A client whose target stays, here the activators' Service, makes a new connection meanwhile, and no call fails.
    """
    with (
        deployed(api, "calls", template(ALWAYS, http2=True)) as calls,
        deployed(api, "sockets", template(ALWAYS)) as sockets,
        ExitStack() as opened,
    ):
        found = client.backend(calls)
        connection = opened.enter_context(http2.Connection(found))
        echo = Echo(connection)
        call = opened.enter_context(Conversation(opened.enter_context(channel(found)), found))
        socket = opened.enter_context(socket_to(client.backend(sockets)))

        def turns(piece: str) -> None:
            echo.turn(piece.encode())
            assert call.turn(piece.encode()) == piece.encode()
            assert turn(socket, piece) == piece

        turns("before")
        activators = api.get("v1", "Service", SYSTEM_NAMESPACE, "activator-service")["spec"]["clusterIP"]
        unary = Calls(lambda: found._replace(address=f"{activators}:81"), kept=True)
        with unary.running():
            wait_until("a call", lambda: unary.good > 0, 30)
            former = system_pods(api, "activator")
            restart(api, "activator")
            turns("while the former one drains")
            if whose(implementation, "activator") == "ours":
                connection.wait("GOAWAY", lambda: connection.goaway is not None, DRAIN_S)
                assert connection.goaway is not None
                code, last = connection.goaway
                assert (code, last >= echo.stream) == (0, True)
                turns("after GOAWAY")
                assert (echo.end(), call.end()) == (200, grpc.StatusCode.OK)
                assert turn(socket, "after all others") == "after all others"
                socket.close()
            else:
                connection.wait("its end", lambda: connection.closed, DRAIN_S)
                with pytest.raises(grpc.RpcError):
                    call.turn(b"after the end")
                with pytest.raises(ConnectionClosed):
                    socket.recv(CALL_S)
            wait_gone(api, former)
            before = unary.good
            wait_until("a call to another activator", lambda: unary.good > before, 30)
        if whose(implementation, "activator") == "ours":
            assert unary.failures == []


@pytest.mark.parametrize(
    "fields",
    [{"timeoutSeconds": 3}, {"timeoutSeconds": 60, "idleTimeoutSeconds": 3}],
    ids=["total", "idle"],
)
def test_a_websocket_ends_with_its_time(api: Api, client: Client, fields: dict[str, Any]) -> None:
    with deployed(api, "timed", template(ALWAYS, **fields)) as service:
        with socket_to(client.backend(service)) as socket:
            assert turn(socket, "in time") == "in time"
            with pytest.raises(ConnectionClosed):
                socket.recv(CALL_S)
        with socket_to(client.backend(service)) as socket:
            assert turn(socket, "again") == "again"
