"""HTTP/2 through the data plane over real sockets: streams, holding, ends of either side, windows, limits, drain."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import aiohttp
import h2.events
import pytest

from activator_replacement.http2.client import BUFFERED_BYTES, HEADER_BYTES, Http2Client
from activator_replacement.http2.connections import Http2Connections
from activator_replacement.seam import CLIENT_GONE, OK, TIMEOUT, UPSTREAM_FAILED
from kserve_ext.wire.http2 import frames
from kserve_ext.wire.http2.connection import STREAM_WINDOW
from kserve_ext.wire.http2.hpack import literal
from kserve_ext.wire.http2.streams import Stream
from tests.support.dataplane import Client, HoldingDispatch, dataplane, echo, instance, run, time_passes
from tests.support.http2 import REQUEST, REQUEST_BLOCK, Peer, at_rest, connect, echo2, instance2, turn_until

MB = 1 << 20
UNKNOWN = [*REQUEST[:3], (":authority", "unknown")]


def test_simple_exchanges_share_a_connection_to_the_instance() -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, admin):
                client = await connect(host, port)
                seen = await client.request(
                    b"hello",
                    ("knative-serving-namespace", "n"),
                    ("knative-serving-revision", "r"),
                    ("x-a", "1"),
                )
                request_id = dispatch.exchanges[0].request_id.decode()
                assert seen.heads == [
                    {":status": "200", "x-path": "/v1/x", "x-request-id": request_id, "x-cold-start": "false"}
                ]
                assert (bytes(seen.body), seen.trailers) == (b"hello", {"x-sum": "5"})
                assert made.peers[0].streams[1].heads == [
                    {
                        **dict(REQUEST),
                        "x-a": "1",
                        "k-proxy-request": "activator",
                        "x-forwarded-for": "127.0.0.1",
                        "forwarded": "for=127.0.0.1;proto=http",
                        "x-forwarded-proto": "http",
                        "x-request-id": request_id,
                    }
                ]
                assert dispatch.exchanges[0].revision == "n/r"
                assert dispatch.exchanges[0].header(b"host") == b"tiny"
                dispatch.cold = True
                seen = await client.request(b"", ("x-request-id", "mine"))
                assert seen.heads[0]["x-request-id"] == "mine"
                assert seen.heads[0]["x-cold-start"] == "true"
                other = await connect(host, port)
                await other.request(b"x" * 100)
                assert dispatch.calls == ["submit", "sent", "first_byte", "finished"] * 3
                assert dispatch.outcomes == [OK] * 3
                cache = server.plane.http2_cache
                assert (cache.opened, cache.reused, cache.open_count) == (1, 2, 1)
                at_rest(server.plane)
                url = f"http://{admin[0]}:{admin[1]}/metrics"
                async with aiohttp.ClientSession() as session, session.get(url) as response:
                    text = await response.text()
                assert 'galaxy_responses_total{status="200"} 3.0' in text
                assert "galaxy_upstream_connections_http2 1.0" in text

    run(test())


def test_trailers_of_a_request_and_informational_responses() -> None:
    def serve(peer: Peer, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            peer.respond(event.stream_id, status=100)
            peer.respond(event.stream_id, ("link", "x"), status=103)
        elif isinstance(event, h2.events.TrailersReceived):
            sums = peer.streams[event.stream_id].trailers or {}
            peer.respond(event.stream_id, ("x-sum", sums["x-sum"]), status=204, end=True)

    async def test() -> None:
        async with instance2(serve) as made, dataplane(HoldingDispatch(made.addr)) as (server, host, port, _):
            client = await connect(host, port)
            number = client.begin(("expect", "100-continue"))
            await client.until(lambda: client.heads(number) == 2)
            await client.send(number, b"body")
            client.trailers(number, ("x-sum", "4"))
            seen = await client.over(number)
            assert [head[":status"] for head in seen.heads] == ["100", "103", "204"]
            assert seen.heads[2]["x-sum"] == "4"
            at_rest(server.plane)

    run(test())


@pytest.mark.parametrize("declared", [True, False])
def test_large_bodies_both_ways(declared: bool) -> None:
    async def test() -> None:
        async with instance2(echo2) as made, dataplane(HoldingDispatch(made.addr)) as (server, host, port, _):
            client = await connect(host, port)
            bodies = [os.urandom(3 * MB), os.urandom(70_000), b"", os.urandom(16_384)]
            more = [[("content-length", str(len(b)))] if declared else [] for b in bodies]
            got = await asyncio.gather(*(client.request(b, *m) for b, m in zip(bodies, more, strict=True)))
            for body, seen in zip(bodies, got, strict=True):
                assert hashlib.sha256(seen.body).digest() == hashlib.sha256(body).digest()
            at_rest(server.plane)

    run(test())


def test_held_requests_and_what_holding_them_costs() -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = HoldingDispatch("", bound=4)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                whole = client.begin()
                client.h2.send_data(whole, b"whole", end_stream=True)
                open_ended = client.begin()
                declared = client.begin(("content-length", "100000"))
                empty = client.begin(end=True)
                await dispatch.until(lambda: len(dispatch.held) == 4)
                sizes = [e.held_bytes - len(e.head) for e in dispatch.exchanges]
                assert sizes == [5, 65_535, 65_535, 0]
                over = await client.request(b"one too many")
                assert over.status == 429
                assert over.heads[0]["retry-after"] == "2"
                assert over.heads[0]["content-type"] == "application/json"
                assert over.error()["code"] == "queue_full"
                # As much as its window is taken while it is held.
                sending = asyncio.ensure_future(client.send(declared, b"d" * 100_000, True))
                await turn_until(lambda: client.h2.local_flow_control_window(declared) == 0)
                dispatch.release(made.addr)
                assert bytes((await client.over(whole)).body) == b"whole"
                await sending
                assert len((await client.over(declared)).body) == 100_000
                assert (await client.over(empty)).ended
                await client.send(open_ended, b"late", True)
                assert bytes((await client.over(open_ended)).body) == b"late"
                at_rest(server.plane)

    run(test())


def test_refusals_and_timeouts() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch("")
            dispatch.timeout_s = 10.0
            async with dataplane(dispatch, tick_s=1000.0, idle_timeout_s=1e9) as (server, host, port, _):
                client = await connect(host, port)
                pairs = [*REQUEST[:3], (":authority", "unknown.example.com")]
                assert (await client.request(b"x", pairs=pairs)).status == 404
                number = client.begin(end=True)
                await dispatch.until(lambda: bool(dispatch.held))
                time_passes(server, dispatch)
                late = await client.over(number)
                assert (late.status, late.error()["code"]) == (504, "timeout")
                dispatch.addr = made.addr  # which never answers
                number = client.begin()
                await made.requests(1)
                time_passes(server, dispatch)
                seen = await client.over(number)
                assert seen.status == 504
                await client.until(lambda: client.streams[number].reset is not None)
                assert seen.reset == frames.NO_ERROR  # the rest of its body is not wanted
                await made.until(lambda: made.peers[0].streams[1].reset is not None)
                assert made.peers[0].streams[1].reset == frames.CANCEL
                assert dispatch.outcomes == [TIMEOUT, TIMEOUT]
                head = await client.request(pairs=[(":method", "HEAD"), *pairs[1:]])
                assert (head.status, bytes(head.body)) == (404, b"")
                at_rest(server.plane)

    run(test())


def test_a_client_that_resets_ends_the_work_and_nothing_else() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch("")
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                held = client.begin(end=True)
                await dispatch.until(lambda: len(dispatch.held) == 1)
                client.reset(held)
                await dispatch.until(lambda: dispatch.outcomes == [CLIENT_GONE])
                dispatch.addr = made.addr
                sent, stays = client.begin(end=True), client.begin(end=True)
                await made.requests(2)
                peer = made.peers[0]
                client.reset(sent)
                await made.until(lambda: peer.streams[1].reset == frames.CANCEL)
                peer.respond(3, end=True)
                assert (await client.over(stays)).status == 200
                answered = client.begin(end=True)
                await made.requests(3)
                peer.respond(5)
                await client.head(answered)
                client.close()
                await made.until(lambda: peer.streams[5].reset == frames.CANCEL)
                assert dispatch.outcomes == [CLIENT_GONE, CLIENT_GONE, OK, CLIENT_GONE]
                assert len(made.peers) == 1
                at_rest(server.plane)

    run(test())


def test_a_stream_that_is_reset_in_the_same_read_never_reaches_dispatch() -> None:
    async def test() -> None:
        dispatch = HoldingDispatch("")
        async with dataplane(dispatch) as (server, host, port, _):
            client = await connect(host, port)
            await client.until(lambda: client.raw)
            client.h2.send_headers(1, REQUEST, end_stream=True)
            client.h2.reset_stream(1)
            client.begin(end=True)
            await dispatch.until(lambda: len(dispatch.held) == 1)
            assert dispatch.calls == ["submit"]
            assert server.plane.counters.requests == 2

    run(test())


def test_an_instance_that_breaks_off() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                begun, events, waiting = (
                    client.begin(end=True),
                    client.begin(end=True),
                    client.begin(end=True),
                )
                await made.requests(3)
                peer = made.peers[0]
                peer.respond(1)
                peer.respond(3, ("content-type", "text/event-stream"))
                peer.h2.send_data(1, b"some")
                peer.h2.send_data(3, b"data: 1\n\n")
                peer.flush()
                await client.until(lambda: client.streams.get(events) and client.streams[events].body)
                peer.close()
                assert (await client.over(begun)).reset == frames.INTERNAL_ERROR
                seen = await client.over(events)
                assert seen.reset is None
                assert seen.body.startswith(b"data: 1\n\ndata: {")
                assert b"instance_failed" in seen.body
                assert (await client.over(waiting)).status == 502
                assert sorted(dispatch.outcomes) == [UPSTREAM_FAILED, UPSTREAM_FAILED]
                assert dispatch.calls.count("failed True") == 1
                at_rest(server.plane)

    run(test())


def test_what_an_instance_did_not_answer_goes_to_another_if_dispatch_says_so() -> None:
    async def test() -> None:
        async with instance2() as bad, instance2(echo2) as good:
            dispatch = HoldingDispatch(bad.addr)
            dispatch.requeue = True
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                number = client.begin()
                await client.send(number, b"first ")
                await bad.requests(1)
                dispatch.addr = ""
                bad.peers[0].close()
                await dispatch.until(lambda: len(dispatch.held) == 1)
                await client.send(number, b"second", True)
                dispatch.release(good.addr)
                assert bytes((await client.over(number)).body) == b"first second"
                at_rest(server.plane)

    run(test())


def test_a_body_too_long_to_keep_is_not_sent_again() -> None:
    async def test() -> None:
        async with instance2() as bad:
            dispatch = HoldingDispatch(bad.addr)
            dispatch.requeue = True
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                number = client.begin()
                await client.send(number, b"x" * 200_000)
                await bad.until(lambda: len(bad.peers[0].streams[1].body) == 200_000)
                bad.peers[0].close()
                seen = await client.head(number)
                assert seen.status == 502
                assert dispatch.calls[-1] == "failed False"
                at_rest(server.plane)

    run(test())


def test_an_instance_that_goes_away_gets_no_more_and_loses_nothing() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                one = client.begin(end=True)
                two = client.begin()
                await client.send(two, b"kept for the second connection")
                await made.requests(2)
                old = made.peers[0]
                old.transport.write(frames.goaway(1, 0))
                await made.requests(3)
                new = made.peers[1]
                new.respond(1, end=True)
                assert (await client.over(two)).status == 200
                old.respond(1, end=True)
                assert (await client.over(one)).status == 200
                await old.end()
                three = client.begin(end=True)
                await made.until(lambda: 3 in new.streams)
                new.respond(3, end=True)
                assert (await client.over(three)).status == 200
                assert len(made.peers) == 2
                assert server.plane.counters.retried == 1
                assert dispatch.outcomes == [OK] * 3
                at_rest(server.plane)

    run(test())


def test_a_refused_stream_is_sent_again_a_few_times() -> None:
    async def test() -> None:
        def serve(peer: Peer, event: Any) -> None:
            if isinstance(event, h2.events.RequestReceived):
                if refusing:
                    refusing.pop()
                    peer.reset(event.stream_id, frames.REFUSED_STREAM)
                else:
                    peer.respond(event.stream_id, end=True)

        refusing = [True] * 2
        async with instance2(serve) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                assert (await client.request(b"x")).status == 200
                assert server.plane.counters.retried == 2
                refusing += [True] * 100
                assert (await client.request(b"x")).status == 502
                assert dispatch.calls[-1] == "failed True"
                at_rest(server.plane)

    run(test())


def test_what_an_instance_resets_or_sends_wrongly() -> None:
    async def test() -> None:
        def serve(peer: Peer, event: Any) -> None:
            if not isinstance(event, h2.events.RequestReceived):
                return
            number = event.stream_id
            path = peer.streams[number].heads[0][":path"]
            if path == "/reset":
                peer.reset(number, frames.ENHANCE_YOUR_CALM)
            elif path == "/cancel":
                peer.reset(number, frames.CANCEL)
            elif path == "/later":
                peer.respond(number)
                peer.reset(number, frames.ENHANCE_YOUR_CALM)
            elif path == "/short":
                peer.respond(number, ("content-length", "5"))
                peer.h2.send_data(number, b"1234")
                peer.trailers(number, ("x", "y"))
            elif path == "/long":
                peer.respond(number, ("content-length", "3"))
                peer.h2.send_data(number, b"1234")
                peer.flush()
            elif path == "/none":
                peer.respond(number, ("content-length", "3"), end=True)
            elif path == "/hop":
                peer.respond(number, ("connection", "close"), end=True)
            elif path == "/switch":
                peer.respond(number, status=101)
            else:
                peer.respond(number, ("content-length", "3"), end=True)

        async with instance2(serve) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)

                def get(path: str, method: str = "GET") -> Any:
                    return client.request(
                        pairs=[(":method", method), REQUEST[1], (":path", path), REQUEST[3]]
                    )

                reset = await get("/reset")
                assert reset.status == 502
                assert "reset the request (error 11)" in reset.error()["message"]
                assert (await get("/later")).reset == frames.ENHANCE_YOUR_CALM
                assert (await get("/cancel")).reset == frames.CANCEL
                assert (await get("/short")).reset == frames.INTERNAL_ERROR
                assert (await get("/long")).reset == frames.INTERNAL_ERROR
                for path in ("/none", "/hop", "/switch"):
                    seen = await get(path)
                    assert (seen.status, seen.error()["code"]) == (502, "instance_failed")
                assert (await get("/", "HEAD")).heads[0]["content-length"] == "3"
                assert len(made.peers) == 1
                at_rest(server.plane)

    run(test())


def test_a_response_that_ends_before_its_request_stops_the_request() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                number = client.begin()
                await client.send(number, b"x" * 10)
                await made.requests(1)
                made.peers[0].respond(1, status=413, end=True)
                seen = await client.over(number)
                assert (seen.status, seen.ended) == (413, True)
                await client.until(lambda: seen.reset is not None)
                assert seen.reset == frames.NO_ERROR
                await made.until(lambda: made.peers[0].streams[1].reset is not None)
                assert dispatch.outcomes == [OK]
                at_rest(server.plane)

    run(test())


@pytest.mark.parametrize("limit", [1, 7])
def test_no_connection_has_more_streams_than_its_server_takes(limit: int) -> None:
    async def test() -> None:
        most = 0

        def serve(peer: Peer, event: Any) -> None:
            nonlocal most
            if isinstance(event, h2.events.RequestReceived):
                most = max(most, peer.h2.open_inbound_streams)

        async with instance2(serve, settings={3: limit}) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                first = client.begin(end=True)
                await made.requests(1)
                made.peers[0].respond(1, end=True)
                await client.over(first)
                numbers = [client.begin(end=True) for _ in range(20)]
                await made.until(lambda: sum(p.h2.open_inbound_streams for p in made.peers) == 20)
                assert most <= limit
                for peer in made.peers:
                    for number, seen in peer.streams.items():
                        if not seen.reset and (peer, number) != (made.peers[0], 1):
                            peer.respond(number, end=True)
                for number in numbers:
                    assert (await client.over(number)).status == 200
                assert dispatch.outcomes == [OK] * 21
                at_rest(server.plane)

    run(test())


def test_a_thousand_streams_on_one_connection() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                await client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 1000)
                numbers = []
                for i in range(1000):
                    numbers.append(client.h2.get_next_available_stream_id())
                    client.h2.send_headers(numbers[-1], [*REQUEST, ("x-i", str(i))], end_stream=True)
                client.flush()
                await made.requests(1000)
                for peer, number in await made.requests(1000):
                    peer.h2.send_headers(number, [(":status", "200")])
                    peer.h2.send_data(number, peer.streams[number].heads[0]["x-i"].encode(), end_stream=True)
                for peer in made.peers:
                    peer.flush()
                for i, number in enumerate(numbers):
                    assert (await client.over(number)).body == str(i).encode()
                assert dispatch.outcomes == [OK] * 1000
                at_rest(server.plane)

    run(test())


def test_a_slow_reader_costs_its_window_and_its_instance_is_not_read_for_it() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port, windows=False)
                slow = client.begin(end=True)
                (peer, number), *_ = await made.requests(1)
                peer.respond(number)
                body = os.urandom(5 * MB)
                sending = asyncio.ensure_future(peer.send(number, body, True))
                await client.until(
                    lambda: client.streams.get(slow) and len(client.streams[slow].body) == 65_535
                )
                (exchange,) = dispatch.exchanges
                down: Stream = exchange.down  # type: ignore[attr-defined]
                await turn_until(lambda: down.queued and peer.h2.local_flow_control_window(number) == 0)
                assert down.queued <= STREAM_WINDOW
                # Others on the same two connections are not in its way, once the client's own window is open.
                client.h2.increment_flow_control_window(1000)
                client.flush()
                fast = client.begin(end=True)
                await made.until(lambda: 3 in peer.streams)
                peer.respond(3)
                await peer.send(3, b"quick", True)
                assert bytes((await client.over(fast)).body) == b"quick"
                client.windows = True
                client.h2.increment_flow_control_window(65_535)
                client.h2.increment_flow_control_window(65_535, slow)
                client.flush()
                assert bytes((await client.over(slow)).body) == body
                await sending
                at_rest(server.plane)

    run(test())


def test_a_slow_instance_costs_its_window_and_the_client_waits() -> None:
    async def test() -> None:
        async with instance2(windows=False) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                number = client.begin()
                body = os.urandom(3 * MB)
                sending = asyncio.ensure_future(client.send(number, body, True))
                ((peer, up),) = await made.requests(1)
                (proxied,) = server.plane.clients
                assert isinstance(proxied, Http2Client)
                await turn_until(lambda: proxied.connection.buffered >= STREAM_WINDOW - 65_535)
                await turn_until(lambda: client.h2.local_flow_control_window(number) == 0)
                await made.until(lambda: len(peer.streams[up].body) >= 65_535)
                assert len(peer.streams[up].body) == 65_535
                assert proxied.connection.buffered <= STREAM_WINDOW
                peer.windows = True
                peer.h2.increment_flow_control_window(65_535)
                peer.h2.increment_flow_control_window(65_535, up)
                peer.flush()
                await sending
                await made.until(lambda: peer.streams[up].ended)
                assert bytes(peer.streams[up].body) == body
                peer.respond(up, end=True)
                assert (await client.over(number)).status == 200
                at_rest(server.plane)

    run(test())


def test_bodies_that_wait_do_not_stop_others_until_there_are_too_many() -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = HoldingDispatch("")
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                numbers = [client.begin() for _ in range(40)]  # 2.6 MB of held bodies
                sending = [asyncio.ensure_future(client.send(n, b"x" * 65_000, True)) for n in numbers]
                await asyncio.gather(*sending)
                await dispatch.until(lambda: len(dispatch.held) == 40)
                (proxied,) = server.plane.clients
                assert isinstance(proxied, Http2Client)
                await turn_until(lambda: proxied.connection.buffered == 40 * 65_000 < BUFFERED_BYTES)
                dispatch.addr = made.addr
                assert bytes((await client.request(b"passes")).body) == b"passes"
                dispatch.release(made.addr)
                for number in numbers:
                    assert len((await client.over(number)).body) == 65_000
                at_rest(server.plane)

    run(test())


def test_many_large_responses_at_once_fill_no_more_than_the_transport_takes() -> None:
    async def test() -> None:
        body = os.urandom(4 * MB)

        def serve(peer: Peer, event: Any) -> None:
            if isinstance(event, h2.events.RequestReceived):
                peer.respond(event.stream_id)
                task = asyncio.ensure_future(peer.send(event.stream_id, body, True))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        tasks: set[asyncio.Task[None]] = set()
        async with instance2(serve, settings={3: 1}) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch, write_buffer_bytes=1000) as (server, host, port, _):
                client = await connect(host, port, settings={4: 1 << 24})
                client.h2.increment_flow_control_window(1 << 28)
                client.flush()
                got = await asyncio.gather(*(client.request(b"") for _ in range(6)))
                assert all(bytes(seen.body) == body for seen in got)
                at_rest(server.plane)

    run(test())


def test_a_client_that_stops_reading_is_cut_off() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch, stall_timeout_s=0.1) as (server, host, port, _):
                client = await connect(host, port, windows=False)
                number = client.begin(end=True)
                await made.requests(1)
                peer = made.peers[0]
                peer.respond(1)
                sending = asyncio.ensure_future(peer.send(1, b"x" * 100_000, True))
                assert (await client.over(number)).reset == frames.CANCEL
                assert dispatch.outcomes == [CLIENT_GONE]
                await sending
                at_rest(server.plane)

    run(test())


@pytest.mark.parametrize("pieces", [1, 24])
def test_the_preface_may_come_in_pieces(pieces: int) -> None:
    async def test() -> None:
        async with instance2(echo2) as made, dataplane(HoldingDispatch(made.addr)) as (_, host, port, _a):
            reader, writer = await asyncio.open_connection(host, port)
            data = frames.PREFACE + frames.settings()
            size = len(data) // pieces
            for at in range(0, len(data), size):
                writer.write(data[at : at + size])
                await writer.drain()
                await asyncio.sleep(0)
            head = await reader.readexactly(9)
            assert head[3] == frames.SETTINGS
            writer.close()

    run(test())


def test_upgrade_from_http1() -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await Client.connect(host, port)
                client.send(
                    b"GET /up HTTP/1.1\r\nHost: tiny\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nX-A: 1\r\n\r\n"
                )
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 ")
                peer = Peer(client=True)
                peer.h2.initiate_upgrade_connection()
                transport = client.writer.transport
                rest = bytes(client.reader._buffer)  # type: ignore[attr-defined]
                client.reader._buffer.clear()  # type: ignore[attr-defined]
                peer.transport = transport
                transport.set_protocol(peer)
                peer.flush()
                if rest:
                    peer.data_received(rest)
                seen = await peer.over(1)
                assert (seen.status, seen.trailers) == (200, {"x-sum": "0"})
                assert seen.heads[0]["x-path"] == "/up"
                assert made.peers[0].streams[1].heads[0]["x-a"] == "1"
                assert "http2-settings" not in made.peers[0].streams[1].heads[0]
                assert bytes((await peer.request(b"next")).body) == b"next"
                at_rest(server.plane)

    run(test())


def test_an_upgrade_that_is_none() -> None:
    async def test() -> None:
        dispatch = HoldingDispatch()
        async with instance(echo) as dispatch.addr, dataplane(dispatch) as (_, host, port, _a):
            client = await Client.connect(host, port)
            head = b"POST / HTTP/1.1\r\nHost: tiny\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            client.send(head + b"HTTP2-Settings: AAMAAABk\r\nContent-Length: 1\r\n\r\n")
            await dispatch.until(lambda: dispatch.submitted == 1)
            client.send(b"x")  # with a body that was not there: stays in HTTP/1.1
            assert (await client.response())[::2] == (200, b"x")
            client.send(head + b"HTTP2-Settings: !\r\n\r\n")
            assert (await client.response())[0] == 101
            rest = await client.closed()
            assert b"base64url" in rest

    run(test())


def test_an_instance_that_only_speaks_http1() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def test() -> None:
        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _a):
            client = await connect(host, port)
            seen = await client.request(b"x")
            assert seen.status == 502
            assert "HTTP/1.1" in seen.error()["message"]

    run(test())


def test_no_instance_at_its_address() -> None:
    async def test() -> None:
        dispatch = HoldingDispatch("127.0.0.1:1")
        async with dataplane(dispatch) as (server, host, port, _):
            client = await connect(host, port)
            got = await asyncio.gather(*(client.request(b"x") for _ in range(150)))
            assert {seen.status for seen in got} == {502}
            assert dispatch.calls.count("failed True") == 150
            at_rest(server.plane)

    run(test())


@pytest.mark.parametrize(
    "pairs",
    [
        [*REQUEST, ("connection", "close")],
        [*REQUEST, ("transfer-encoding", "chunked")],
        [*REQUEST[:3], ("x-a", "1")],
        [*REQUEST, ("content-length", "7")],
        [*REQUEST, ("X-A", "1")],
    ],
)
def test_malformed_requests_are_reset_and_the_connection_lives(pairs: list[tuple[str, str]]) -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                assert (await client.request(pairs=pairs)).reset == frames.PROTOCOL_ERROR
                assert (await client.request(b"x")).status == 200
                assert dispatch.submitted == 1
                at_rest(server.plane)

    run(test())


def test_header_fields_are_bounded_by_what_they_are_and_not_by_their_bytes() -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                many = [("accept-encoding", "gzip, deflate")] * 600  # a byte each
                seen = await client.request(b"x", *many)
                assert (seen.status, seen.ended) == (431, True)
                seen = await client.request(b"", *many)
                assert (seen.status, seen.error()["code"]) == (431, "head_too_large")
                to_head = [(":method", "HEAD"), *REQUEST[1:]]
                seen = await client.request(b"", *many, pairs=to_head)
                assert (seen.status, seen.ended, bytes(seen.body)) == (431, True, b"")
                assert (await client.request(b"x", *many[:500])).status == 200
                number = client.begin()
                await made.requests(2)
                client.h2.send_headers(number, many, end_stream=True)
                client.flush()
                assert (await client.over(number)).reset == frames.PROTOCOL_ERROR
                assert server.plane.counters.responses[431] == 3
                await turn_until(lambda: not dispatch.in_flight)
                assert (dispatch.submitted, len(made.peers)) == (2, 1)
                at_rest(server.plane)

    run(test())


def test_header_blocks_that_are_kept_are_bounded() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch("", bound=1000)
            async with dataplane(dispatch, head_bytes=MB) as (server, host, port, _):
                client = await connect(host, port)
                await client.settled()
                await client.request(b"", ("x-no", "table"), pairs=UNKNOWN)
                large = literal(b"x-large", b"v" * 270_000)
                numbers = [client.send_block(REQUEST_BLOCK + large, end=False) for _ in range(30)]
                await client.until(lambda: len(client.streams) == 16)
                assert {client.streams[number].reset for number in numbers[15:]} == {frames.REFUSED_STREAM}
                small = [client.begin(("x-a", "1"), end=True) for _ in range(20)]
                await dispatch.until(lambda: dispatch.submitted == 35)
                (connection,) = server.plane.clients
                assert isinstance(connection, Http2Client)
                assert HEADER_BYTES * 0.9 < sum(e.kept_bytes for e in connection.exchanges) < HEADER_BYTES
                client.send_block(large, numbers[0])  # count too
                assert (await client.over(numbers[0])).reset == frames.PROTOCOL_ERROR
                numbers.append(client.send_block(REQUEST_BLOCK + large, end=False))  # there is room again
                await dispatch.until(lambda: dispatch.submitted == 36)
                for number in numbers[1:15] + numbers[-1:]:
                    client.reset(number)
                await dispatch.until(lambda: len(dispatch.held) == 20)
                assert sum(e.kept_bytes for e in connection.exchanges) < 20 * 200
                assert dispatch.held[0].header(b"x-a") == b"1"
                dispatch.release(made.addr)
                for peer, number in await made.requests(20):
                    peer.respond(number)
                for number in small:
                    await client.head(number)
                # They are not sent again.
                assert [e.kept_bytes for e in connection.exchanges] == [0] * 20
                assert dispatch.exchanges[-1].header(b"x-a") is None

    run(test())


def test_nothing_is_sent_that_an_instance_or_a_client_gives_up_a_connection_for() -> None:
    """Others have streams on the same connection."""
    large = ("x-large", "v" * 10_000)

    def serve(peer: Peer, event: Any) -> None:
        if isinstance(event, h2.events.StreamEnded):
            path = peer.streams[event.stream_id].heads[0][":path"]
            if path == "/head":
                peer.respond(event.stream_id, large, end=True)
            elif path == "/trailers":
                peer.respond(event.stream_id)
                peer.trailers(event.stream_id, large)
            else:
                peer.respond(event.stream_id, large, status=103)
                peer.respond(event.stream_id, end=True)

    async def test() -> None:
        async with instance2(serve, settings={6: 4000}) as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                waiting = client.begin()
                await made.requests(1)
                await client.request()
                seen = await client.request(b"", large)
                assert seen.status == 431
                assert "instance" in seen.error()["message"]
                number = client.begin()
                await made.requests(3)
                client.trailers(number, large)
                assert (await client.over(number)).reset == frames.PROTOCOL_ERROR
                narrow = await connect(host, port, settings={6: 4000})
                seen = await narrow.request()
                assert [head[":status"] for head in seen.heads] == ["200"]
                seen = await narrow.request(pairs=[*REQUEST[:2], (":path", "/head"), REQUEST[3]])
                assert seen.status == 502
                seen = await narrow.request(pairs=[*REQUEST[:2], (":path", "/trailers"), REQUEST[3]])
                assert seen.reset == frames.INTERNAL_ERROR
                await client.send(waiting, b"", True)
                assert [head[":status"] for head in (await client.over(waiting)).heads] == ["103", "200"]
                assert len(made.peers) == 1
                await turn_until(lambda: not dispatch.in_flight)
                at_rest(server.plane)

    run(test())


@pytest.mark.parametrize("goes", [False, True])
def test_more_than_everybody_takes_waits_until_the_instance_says_what_it_does(goes: bool) -> None:
    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)

        def data_received(self, data: bytes) -> None:
            read.extend(data)

    accepted: asyncio.Future[Any]
    read = bytearray()

    async def test() -> None:
        nonlocal accepted
        loop = asyncio.get_running_loop()
        accepted = loop.create_future()
        listener = await loop.create_server(Silent, "127.0.0.1", 0)
        own_host, own_port = listener.sockets[0].getsockname()[:2]
        dispatch = HoldingDispatch(f"{own_host}:{own_port}")
        async with dataplane(dispatch, head_bytes=1 << 20) as (server, host, port, _):
            client = await connect(host, port)
            await client.settled()
            number = client.begin(*[("x-large", "v" * 30_000)] * 3, end=True)
            transport = await accepted
            await turn_until(lambda: len(read) > 24)
            assert len(read) < 200  # the preface and SETTINGS
            if goes:
                transport.abort()
                assert (await client.over(number)).status == 502
            else:
                transport.write(frames.settings((frames.MAX_HEADER_LIST_SIZE, 1 << 20)))
                await turn_until(lambda: len(read) > 70_000)
                assert "sent" in dispatch.calls
                client.reset(number)
            await turn_until(lambda: not dispatch.in_flight)
            at_rest(server.plane)
            transport.abort()
        listener.close()

    run(test())


@pytest.mark.parametrize("body", [b"12345", b"123"])
def test_a_body_of_another_length_than_declared_is_reset(body: bytes) -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await connect(host, port)
                number = client.begin(("content-length", "4"))
                await made.requests(1)
                await client.send(number, body, True)
                assert (await client.over(number)).reset == frames.PROTOCOL_ERROR
                await made.until(lambda: made.peers[0].streams[1].reset == frames.CANCEL)
                assert dispatch.outcomes == [CLIENT_GONE]
                at_rest(server.plane)

    run(test())


def test_a_flood_of_resets_ends_the_connection_and_only_that() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                good, bad = await connect(host, port), await connect(host, port)
                number = good.begin(end=True)
                await made.requests(1)
                while not bad.closed:
                    for _ in range(50):
                        stream = bad.h2.get_next_available_stream_id()
                        bad.h2.send_headers(stream, REQUEST, end_stream=True)
                        bad.h2.reset_stream(stream)
                    bad.flush()
                    await asyncio.sleep(0)
                assert bad.goaway is not None
                assert bad.goaway[1] == frames.ENHANCE_YOUR_CALM
                made.peers[0].respond(1, end=True)
                assert (await good.over(number)).status == 200
                assert len(server.plane.clients) == 1
                at_rest(server.plane)

    run(test())


def test_drain_serves_what_is_on_its_way() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = HoldingDispatch(made.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client, idle = await connect(host, port), await connect(host, port)
                first = client.begin(end=True)
                await made.requests(1)
                draining = asyncio.ensure_future(server.drain(20.0))
                await client.until(lambda: client.goaway == (2**31 - 1, frames.NO_ERROR))
                second = client.begin(end=True)  # as if it did not know yet
                await made.requests(2)
                for number in (1, 3):
                    made.peers[0].respond(number, end=True)
                assert (await client.over(first)).status == 200
                assert (await client.over(second)).status == 200
                await client.end()
                await idle.end()
                assert client.goaway == (3, frames.NO_ERROR)
                assert await draining == 0
                assert dispatch.outcomes == [OK, OK]

    run(test())


def test_an_idle_connection_is_closed_with_goaway() -> None:
    async def test() -> None:
        dispatch = HoldingDispatch()
        async with instance2(echo2) as made, dataplane(dispatch, idle_timeout_s=0.05) as (_, host, port, _a):
            dispatch.addr = made.addr
            client = await connect(host, port)
            await client.request(b"x")
            await client.end()
            assert client.goaway == (1, frames.NO_ERROR)

    run(test())


def test_a_header_block_that_does_not_end_is_not_waited_for() -> None:
    async def test() -> None:
        async with dataplane(HoldingDispatch(""), head_timeout_s=0.05) as (_, host, port, _a):
            client = await connect(host, port)
            await client.settled()
            client.transport.write(frames.frame(frames.HEADERS, 0, 1, b"\x83"))
            await client.end()
            assert client.goaway is not None
            assert client.goaway[1] == frames.ENHANCE_YOUR_CALM

    run(test())


def test_kept_connections_are_closed_when_idle() -> None:
    async def test() -> None:
        async with instance2(echo2) as made, dataplane(HoldingDispatch(made.addr)) as (server, host, port, _):
            cache = server.plane.http2_cache
            assert isinstance(cache, Http2Connections)
            cache._idle_s = 0.05
            client = await connect(host, port)
            await client.request(b"x")
            await made.peers[0].end()
            assert made.peers[0].goaway == (0, frames.NO_ERROR)
            assert cache.open_count == 0
            assert bytes((await client.request(b"again")).body) == b"again"

    run(test())


def test_http1_and_http2_share_a_port() -> None:
    async def test() -> None:
        async with instance2(echo2) as two, instance(echo) as one:
            dispatch = HoldingDispatch(two.addr)
            async with dataplane(dispatch) as (server, host, port, _):
                second = await connect(host, port)
                assert bytes((await second.request(b"two")).body) == b"two"
                dispatch.addr = one
                first = await Client.connect(host, port)
                first.send(b"POST / HTTP/1.1\r\nHost: tiny\r\nContent-Length: 3\r\n\r\none")
                assert (await first.response())[2] == b"one"
                assert sum(client.active for client in server.plane.clients) == 0
                assert len(server.plane.clients) == 2

    run(test())
