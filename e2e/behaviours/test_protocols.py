"""gRPC, WebSocket, streams and timeouts, through the activator and from zero."""

from __future__ import annotations

import http.client
from typing import Any

import grpc
import pytest
from websockets.sync.client import connect

from e2e.behaviours.calls import CALL_S, Conversation, channel, metadata
from e2e.behaviours.client import Client
from e2e.behaviours.services import ASLEEP, deployed, template
from e2e.stack.api import Api

ALWAYS = {"target-burst-capacity": "-1"}


def test_grpc_unary_from_zero(api: Api, client: Client) -> None:
    with deployed(api, "grpc", template({**ALWAYS, **ASLEEP}, http2=True)) as service:
        found = client.backend(service)
        with channel(found) as opened:
            call = opened.unary_unary("/e2e.Echo/Unary")
            assert call(b"hello", metadata=metadata(found), timeout=CALL_S) == b"hello"
            answer, info = call.with_call(b"x" * 100_000, metadata=metadata(found), timeout=CALL_S)
            assert answer == b"x" * 100_000
            assert info.code() is grpc.StatusCode.OK
            assert dict(info.initial_metadata())["pod"].startswith(service.revision)


def test_grpc_streams_both_ways(api: Api, client: Client) -> None:
    """Each answer comes before the next message is sent."""
    with deployed(api, "stream", template(ALWAYS, http2=True)) as service:
        found = client.backend(service)
        with channel(found) as opened, Conversation(opened, found) as conversation:
            for number in range(20):
                message = f"message {number}".encode()
                assert conversation.turn(message) == message
            assert conversation.end() is grpc.StatusCode.OK


def test_websocket_from_zero(api: Api, client: Client) -> None:
    with deployed(api, "socket", template({**ALWAYS, **ASLEEP})) as service:
        found = client.backend(service)
        headers = {name: value for name, value in found.headers.items() if name != "Host"}
        with connect(
            f"ws://{found.address}/socket", additional_headers=headers, open_timeout=CALL_S
        ) as socket:
            for number in range(10):
                socket.send(f"message {number}")
                assert socket.recv(CALL_S) == f"message {number}"
            socket.send(b"\0\xff" * 10_000)
            assert socket.recv(CALL_S) == b"\0\xff" * 10_000


def test_events_arrive_one_by_one(api: Api, client: Client) -> None:
    """The second event is not sent before the first is asked for: the server waits until the client has it."""
    with deployed(api, "events", template(ALWAYS)) as service:
        found = client.backend(service)
        connection = http.client.HTTPConnection(found.address, timeout=CALL_S)
        connection.request("GET", "/events?n=3&every=2000", headers=found.headers)
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "text/event-stream"
        # read1 gives what has come: one event, while the next is two seconds away.
        first = response.read1(1000)
        assert first == b"data: 0\n\n"
        assert response.read() == b"\ndata: 1\n\ndata: 2\n\n".lstrip(b"\n")
        connection.close()


def test_full_duplex_echo(api: Api, client: Client) -> None:
    """HTTP/1.1: each piece of the body comes back before the next is sent."""
    marks = {**ALWAYS}
    wanted = template(marks)
    wanted["metadata"]["annotations"]["features.knative.dev/http-full-duplex"] = "Enabled"
    with deployed(api, "duplex", wanted) as service:
        found = client.backend(service)
        connection = http.client.HTTPConnection(found.address, timeout=CALL_S)
        connection.putrequest("POST", "/echo", skip_host=True)
        for name, value in {**found.headers, "Transfer-Encoding": "chunked"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(b"5\r\nfirst\r\n")
        response = connection.getresponse()
        assert response.read(5) == b"first"
        connection.send(b"6\r\nsecond\r\n")
        assert response.read(6) == b"second"
        connection.send(b"0\r\n\r\n")
        assert response.read() == b""
        connection.close()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"timeoutSeconds": 3}, "/?sleep=20000"),
        ({"timeoutSeconds": 60, "responseStartTimeoutSeconds": 3}, "/?sleep=20000"),
        ({"timeoutSeconds": 60, "idleTimeoutSeconds": 3}, "/?sleep=20000"),
    ],
    ids=["total", "response-start", "idle"],
)
def test_a_request_that_takes_too_long_is_answered_504(
    api: Api, client: Client, fields: dict[str, Any], path: str
) -> None:
    with deployed(api, "timeout", template(ALWAYS, **fields)) as service:
        assert client.send(service, path).status == 504
        assert client.send(service, "/?sleep=100").status == 200


def test_an_error_of_the_server_is_passed_on(api: Api, client: Client) -> None:
    with deployed(api, "errors", template(ALWAYS)) as service:
        for status in (201, 404, 500, 503):
            answer = client.send(service, f"/?status={status}")
            assert (answer.status, answer.report["path"]) == (status, "/")


def test_an_ingress_that_probes_is_answered_and_wakes_nothing(api: Api, client: Client) -> None:
    probe = {"K-Network-Probe": "probe", "K-Network-Hash": "some-hash", "User-Agent": "Knative-Ingress-Probe"}
    with deployed(api, "probed", template({**ALWAYS, **ASLEEP})) as service:
        answer = client.send(service, "/healthz", headers=probe)
        assert (answer.status, answer.headers["k-network-hash"]) == (200, "some-hash")
        assert service.pods() == []
