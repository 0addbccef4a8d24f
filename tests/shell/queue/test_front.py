"""The front in this process, told by the test what a slot would say: HTTP/2, what waits, what changes, its pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from time import monotonic

import h2.events
import msgspec
import pytest

from activator_replacement.queue import pages
from activator_replacement.queue.dispatcher import QueueDispatcher
from activator_replacement.queue.front import Front
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.facts import Assignment, Timeouts
from kserve_ext.rpc.ports import free_port
from kserve_ext.wire.http2 import frames
from kserve_ext.wire.slot_front import Assign, Assigned, Blank, Drain, Drained, Serve, ToSlot, Up
from tests.support.dataplane import Client, get, instance, read_request, run
from tests.support.http2 import REQUEST, Peer, connect, echo2, instance2, turn_until
from tests.support.standby_pod import address


class Slot:
    """A front, and what it says."""

    def __init__(self, front: Front, said: list[ToSlot]) -> None:
        self.front = front
        self.said = said
        self.changed = asyncio.Event()

    @property
    def dispatcher(self) -> QueueDispatcher:
        return self.front.dispatcher

    def write(self, data: bytes) -> None:
        self.said.append(msgspec.json.decode(data, type=ToSlot))
        self.changed.set()

    async def until(self, message: ToSlot) -> None:
        while message not in self.said:
            self.changed.clear()
            await self.changed.wait()

    def serve(self, assignment: Assignment) -> None:
        self.front.obey(Assign(assignment))
        self.front.obey(Serve(assignment.revision))


@contextlib.asynccontextmanager
async def front(quiet_s: float = 0.0) -> AsyncIterator[tuple[Slot, str]]:
    host = address()
    made = Front("pod-1", "ns", host, quiet_s)
    slot = Slot(made, [])
    made.writer = slot  # type: ignore[assignment]
    await made.start()
    try:
        yield slot, host
    finally:
        made.close()


def revision(addr: str, name: str = "rev", **fields: object) -> Assignment:
    port = int(addr.rpartition(":")[2])
    made = Assignment(
        RevisionKey(f"ns/{name}"), InstanceID("pod-1"), ("x",), (), port, False, 0, Timeouts(), "", ()
    )
    return made._replace(**fields)  # type: ignore[arg-type]


def test_http2_goes_to_the_server_as_queue_proxy_sends_it() -> None:
    async def test() -> None:
        async with instance2(echo2) as made, front() as (slot, host):
            slot.serve(revision(made.addr, http2=True))
            assert slot.said == [Up(), Assigned("ns/rev")]
            client = await connect(host, 8013)
            seen = await client.request(
                b"hello",
                ("k-original-host", "svc.example"),
                ("k-proxy-request", "activator"),
                ("x-forwarded-for", "1.2.3.4"),
                ("knative-serving-namespace", "ns"),
                ("knative-serving-revision", "rev"),
                ("te", "trailers"),
            )
            assert (seen.status, bytes(seen.body)) == (200, b"hello")
            assert seen.trailers == {"x-sum": "5"}
            assert made.peers[0].streams[1].heads[0] == {
                **dict(REQUEST),
                ":authority": "svc.example",
                "k-proxy-request": "activator",
                "te": "trailers",
                "forwarded": "for=1.2.3.4",
                "x-forwarded-for": "1.2.3.4, 127.0.0.1",
            }
            report = slot.dispatcher.report()
            assert (report.arrivals, report.proxied_arrivals) == (1, 1)

    run(test())


def test_http2_probes_and_refusals() -> None:
    async def test() -> None:
        async with instance2(echo2) as made, front() as (slot, host):
            client = await connect(host, 8013)
            kubelet = [("user-agent", "kube-probe/1.36"), ("k-network-probe", "queue")]
            assert (await client.request(b"")).status == 503
            assert (await client.request(b"", *kubelet)).status == 503
            slot.front.obey(Blank(True))
            assert (await client.request(b"", *kubelet)).status == 200
            slot.serve(revision(made.addr))
            seen = await client.request(b"", *kubelet)
            assert (seen.status, bytes(seen.body)) == (200, b"queue")
            assert (await client.request(b"", ("user-agent", "kube-probe/1.36"))).status == 400
            seen = await client.request(b"", ("k-network-probe", "probe"), ("k-network-hash", "h"))
            assert (seen.status, seen.heads[0]["k-network-hash"]) == (200, "h")
            seen = await client.request(
                b"", ("knative-serving-namespace", "ns"), ("knative-serving-revision", "another")
            )
            assert seen.status == 503
            assert b"this pod serves ns/rev" in seen.body

    run(test())


def test_who_asks_and_goes_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with front() as (slot, host):
            slot.serve(revision(f"127.0.0.1:{free_port()}"))  # nobody listens: it is asked again and again
            lines = ("User-Agent: Knative-Activator-Probe", "K-Network-Probe: queue")
            gone, stays = await Client.connect(host, 8012), await Client.connect(host, 8012)
            other = await connect(host, 8012)
            gone.send(get("/", *lines))
            stays.send(get("/", *lines))
            number = other.begin(*(("user-agent", "kube-probe/1"), ("k-network-probe", "queue")), end=True)
            plane = slot.front.plane
            await turn_until(lambda: sum(client.active for client in plane.clients) == 3)
            gone.close()
            other.h2.reset_stream(number, frames.CANCEL)
            other.flush()
            await turn_until(lambda: sum(client.active for client in plane.clients) == 1)
            slot.front.obey(Blank(False))
            assert (await stays.response())[0] == 503
            assert slot.dispatcher.under_way == 0

    run(test())


def test_whoever_waits_for_a_free_place_is_next_in_order() -> None:
    async def test() -> None:
        order: list[bytes] = []
        release = asyncio.Semaphore(0)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head, _ = await read_request(reader)
                order.append(head.split(b" ")[1])
                await release.acquire()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with instance(serve) as addr, front() as (slot, host):
            slot.serve(revision(addr, concurrency=1))
            clients = []
            for number in range(4):
                client = await Client.connect(host, 8012)
                client.send(get(f"/{number}"))
                clients.append(client)
                begun = number + 1
                await turn_until(lambda begun=begun: slot.dispatcher.under_way == begun)  # type: ignore[misc]
            clients[2].close()
            await turn_until(lambda: slot.dispatcher.under_way == 3)
            for number in (0, 1, 3):
                release.release()
                assert (await clients[number].response())[0] == 200
            assert order == [b"/0", b"/1", b"/3"]
            assert slot.dispatcher.under_way == 0

    run(test())


def test_drained_is_said_once_nothing_is_under_way_and_the_next_revision_has_its_own_account() -> None:
    async def test() -> None:
        release = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            await release.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with instance(serve) as addr, front() as (slot, host):
            slot.serve(revision(addr, concurrency=1))
            client, waiting = await Client.connect(host, 8012), await Client.connect(host, 8012)
            client.send(get())
            waiting.send(get())
            await turn_until(lambda: slot.dispatcher.under_way == 2)
            slot.front.obey(Drain("ns/rev", 60.0))
            late = await Client.connect(host, 8012)
            late.send(get())
            assert (await late.response())[0] == 503
            assert Drained("ns/rev") not in slot.said
            release.set()
            assert (await client.response())[0] == 200
            assert (await waiting.response())[0] == 200
            await slot.until(Drained("ns/rev"))
            assert await late.closed() == b""
            slot.serve(revision(addr, "next"))
            assert slot.dispatcher.report() == (0.0, 0.0, 0, 0)
            other = await Client.connect(host, 8012)
            other.send(get())
            assert (await other.response())[0] == 200

    run(test())


def test_who_has_not_heard_yet_that_a_revision_is_given_back_is_served() -> None:
    async def test() -> None:
        async with instance2(echo2) as made, front() as (slot, host):
            slot.serve(revision(made.addr, http2=True))
            slot.front.obey(Drain("ns/rev", 60.0, quiet_s=1000.0))
            await turn_until(lambda: slot.dispatcher.draining is not None)
            client = await connect(host, 8013)
            assert (await client.request(b"late")).status == 200
            draining = slot.dispatcher.draining
            assert draining is not None
            assert draining.left_s(monotonic()) > 900.0
            draining.quiet_s = 0.0
            draining.came(monotonic())  # quiet from here on
            slot.front.obey(Drain("ns/rev", 60.0))
            await slot.until(Drained("ns/rev"))
            assert slot.dispatcher.draining is None, "the pod is another revision's next"
            slot.serve(revision(made.addr, "next", http2=True))
            other = await connect(host, 8013)
            assert (await other.request(b"x")).status == 200

    run(test())


def test_a_server_that_is_gone_is_a_bad_gateway_and_a_bad_probe_asks_the_port() -> None:
    async def test() -> None:
        async with front() as (slot, host):
            slot.serve(revision(f"127.0.0.1:{free_port()}", probe="{"))
            client = await Client.connect(host, 8012)
            client.send(get())
            status, _, body = await client.response()
            assert status == 502
            assert b"refused the connection" in body
            assert slot.dispatcher.under_way == 0

    run(test())


def test_a_hook_that_nothing_follows_is_taken_back() -> None:
    async def test() -> None:
        async with instance2(echo2) as made, front(0.05) as (slot, host):
            slot.serve(revision(made.addr))
            reader, writer = await asyncio.open_connection(host, 8022)
            writer.write(b"GET /wait-for-drain HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
            draining = slot.dispatcher.draining
            assert draining is not None
            slot.front._hooked(draining)
            assert slot.dispatcher.draining is None

    run(test())


def test_pages_that_are_not_there_and_connections_that_go_on() -> None:
    async def test() -> None:
        async with front() as (_, host):
            client = await Client.connect(host, 9090)
            client.send(get("/metrics"))
            assert (await client.response())[0] == 200
            client.send(get("/nothing"))
            assert (await client.response())[0] == 404
            client.send(b"GET\r\n\r\n")
            assert await client.closed() == b""

    run(test())


def test_who_connects_to_a_page_and_asks_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "IDLE_S", 0.01)

    async def test() -> None:
        async with front() as (_, host):
            client = await Client.connect(host, 9090)
            assert await client.closed() == b""

    run(test())


@pytest.mark.parametrize(("status", "ready"), [(b"\x08\x01", True), (b"\x08\x02", False), (b"", False)])
def test_a_grpc_probe_asks_the_health_service(status: bytes, ready: bool) -> None:
    """SERVING, NOT_SERVING, and an error without a message."""

    def serve(peer: Peer, event: object) -> None:
        if isinstance(event, h2.events.StreamEnded):
            number = event.stream_id
            assert peer.streams[number].heads[0][":path"] == "/grpc.health.v1.Health/Check"
            assert bytes(peer.streams[number].body) == b"\x00\x00\x00\x00\x03\x0a\x01s"
            if status:
                peer.h2.send_headers(number, [(":status", "200"), ("content-type", "application/grpc")])
                peer.h2.send_data(number, b"\x00\x00\x00\x00\x02" + status)
                peer.trailers(number, ("grpc-status", "0"))
            else:
                fields = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")]
                peer.h2.send_headers(number, fields, end_stream=True)
            peer.flush()

    async def test() -> None:
        async with instance2(serve) as made, front() as (slot, host):
            port = int(made.addr.rpartition(":")[2])
            probe = json.dumps(
                {"grpc": {"port": port, "service": "s"}, "periodSeconds": 1, "timeoutSeconds": 60}
            )
            slot.serve(revision(made.addr, probe=probe))
            client = await Client.connect(host, 8012)
            client.send(get("/", "User-Agent: kube-probe/1.36", "K-Network-Probe: queue"))
            assert (await client.response())[0] == (200 if ready else 503)

    run(test())
