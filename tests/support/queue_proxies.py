"""What a queue-proxy does in a list of situations, as plain facts: Knative's own, or our front.

`python -m tests.support.queue_proxies PROGRAM|ours` runs them all, in a network of its own since both have fixed
ports, and prints them as JSON. Nothing of what differs by nature is in the facts: addresses, times, Date headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import msgspec

from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.facts import Assignment, Timeouts
from kserve_ext.wire import stats
from kserve_ext.wire.slot_front import Assign, Serve

OURS = "ours"
USER_PORT = 8080
PROBE = '{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}'
HTTP_PROBE = (
    '{"httpGet":{"path":"/ready","port":8080,"host":"127.0.0.1","scheme":"HTTP"},'
    '"periodSeconds":1,"timeoutSeconds":1}'
)
#: As Knative's controller sets it by default.
LOGGING = '{"level":"info","encoding":"json","outputPaths":["/dev/null"],"errorOutputPaths":["/dev/null"]}'


class User:
    """The user's server: answers what the path says, and keeps the heads that it saw."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.under_way = 0
        self.most = 0
        self.release = asyncio.Event()
        self.ready = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                try:
                    if not await self._answer(head, reader, writer):
                        break
                finally:
                    self.under_way -= 1
        writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        path = head.split(" ", 2)[1]
        if path == "/ready":
            status = b"200 OK" if self.ready else b"503 No"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
            return True
        self.heads.append(head)
        if path == "/hold":
            await self.release.wait()
        elif path == "/upgrade":
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            writer.write(await reader.readexactly(4))
            return False
        elif path == "/drip":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\na")
            await self.release.wait()
            writer.write(b"b")
            return True
        elif path == "/break":
            return False
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 4\r\nX-User: 1\r\n\r\nuser")
        await writer.drain()
        return True


async def ask(path: str = "/", *lines: str, port: int = 8012, minor: int = 1) -> dict[str, Any]:
    """Status, headers but for those that differ by nature, body. `minor`: version of HTTP/1."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        host = [] if any(line.startswith("Host:") for line in lines) else ["Host: pod"]
        first = f"GET {path} HTTP/1.{minor}"
        writer.write("\r\n".join([first, *host, "Connection: close", *lines, "", ""]).encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    first, *fields = head.decode("latin-1").split("\r\n")
    kept = sorted(
        line for line in (field.lower() for field in fields) if not line.startswith(("date:", "connection:"))
    )
    return {
        "status": int(first.split(" ")[1]) if " " in first else 0,
        "fields": [k for k in kept if k[:15] not in ("content-length:", "retry-after: 1")],
        "body": body.decode("latin-1"),
    }


async def status(*lines: str) -> int:
    return int((await ask("/", *lines))["status"])


@contextlib.asynccontextmanager
async def user() -> AsyncIterator[User]:
    made = User()
    server = await asyncio.start_server(made.serve, "127.0.0.1", USER_PORT)
    try:
        yield made
    finally:
        made.release.set()
        server.close()


class Limits(NamedTuple):
    """What a revision says of its requests; seconds, 0 = none."""

    concurrency: int = 0
    total_s: int = 60
    start_s: int = 0
    idle_s: int = 0


def _ours(limits: Limits, probe: str) -> tuple[subprocess.Popen[bytes], socket.socket | None]:
    slot, theirs = socket.socketpair()
    command = [sys.executable, "-m", "activator_replacement.queue", "--slot-fd", str(theirs.fileno())]
    env = {**os.environ, "POD_NAME": "pod-1", "POD_NAMESPACE": "ns"}
    with theirs:
        child = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL)
    assignment = Assignment(
        RevisionKey("ns/rev"),
        InstanceID("pod-1"),
        ("x",),
        (),
        USER_PORT,
        False,
        limits.concurrency,
        Timeouts(limits.total_s, limits.start_s, limits.idle_s),
        probe,
        (("SERVING_SERVICE", "svc"), ("SERVING_CONFIGURATION", "conf")),
    )
    for message in (Assign(assignment), Serve(assignment.revision)):
        slot.sendall(msgspec.json.encode(message) + b"\n")
    return child, slot


def _theirs(program: str, limits: Limits, probe: str) -> subprocess.Popen[bytes]:
    env = {
        "SERVING_NAMESPACE": "ns",
        "SERVING_SERVICE": "svc",
        "SERVING_CONFIGURATION": "conf",
        "SERVING_REVISION": "rev",
        "SERVING_POD": "pod-1",
        "SERVING_POD_IP": "127.0.0.1",
        "POD_NAME": "pod-1",
        "QUEUE_SERVING_PORT": "8012",
        "QUEUE_SERVING_TLS_PORT": "8112",
        "CONTAINER_CONCURRENCY": str(limits.concurrency),
        "REVISION_TIMEOUT_SECONDS": str(limits.total_s),
        "REVISION_RESPONSE_START_TIMEOUT_SECONDS": str(limits.start_s),
        "REVISION_IDLE_TIMEOUT_SECONDS": str(limits.idle_s),
        "USER_PORT": str(USER_PORT),
        "SERVING_LOGGING_CONFIG": LOGGING,
        "SERVING_LOGGING_LEVEL": "error",
        "SYSTEM_NAMESPACE": "knative-serving",
        "SERVING_READINESS_PROBE": probe,
        "OBSERVABILITY_CONFIG": '{"requestMetrics":{"protocol":"prometheus"}}',
    }
    return subprocess.Popen([program], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.asynccontextmanager
async def proxy(program: str, limits: Limits | None = None, probe: str = PROBE) -> AsyncIterator[None]:
    """One queue-proxy in front of the user's server, until it answers."""
    slot = None
    limits = limits or Limits()
    if program == OURS:
        child, slot = _ours(limits, probe)
    else:
        child = _theirs(program, limits, probe)

    async def answers() -> bool:
        assert child.poll() is None, f"{program} ended"
        with contextlib.suppress(OSError):
            return await status("K-Network-Probe: probe", "K-Network-Hash: h") == 200
        return False

    try:
        await until(answers)
        yield
    finally:
        if slot is not None:
            slot.close()
        child.kill()
        child.wait()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110  what is waited for is another process's
        await asyncio.sleep(0.01)


# --- situations


async def probes(program: str) -> Any:
    facts: dict[str, Any] = {}
    agents = (
        "kube-probe/1.30",
        "Knative-Activator-Probe",
        "Knative-Autoscaling-Probe",
        "Knative-Ingress-Probe",
    )
    async with user() as server, proxy(program):
        for agent in agents:
            for value in ("queue", "probe", "other<&>", ""):
                lines = [f"User-Agent: {agent}", "K-Network-Hash: h"]
                lines += [f"K-Network-Probe: {value}"] if value else []
                facts[f"{agent} {value}"] = await ask("/healthz", *lines)
        facts["without a hash"] = await ask("/", "K-Network-Probe: probe")
        facts["queue, by nobody"] = await ask("/", "K-Network-Probe: queue")
        facts["kubelet's header"] = await ask("/x", "K-Kubelet-Probe: 1", "K-Network-Probe: queue")
        facts["reached the user"] = len(server.heads)
    return facts


async def readiness(program: str) -> Any:
    facts = []
    lines = ("User-Agent: kube-probe/1.30", "K-Network-Probe: queue")
    async with user() as server, proxy(program, probe=HTTP_PROBE):
        for ready in (True, False, True):
            server.ready = ready
            facts.append(await ask("/", *lines))
    return facts


async def nobody_listens(program: str) -> Any:
    async with proxy(program, probe=HTTP_PROBE):
        probed = await ask("/", "User-Agent: kube-probe/1.30", "K-Network-Probe: queue")
        return probed, (await ask("/"))["status"]


HEADS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "by an activator": (
        "Host: 10.0.0.1:8012",
        "K-Original-Host: svc.example.com",
        "K-Proxy-Request: activator",
    ),
    "for": ("X-Forwarded-For: 1.2.3.4, ::1",),
    "for, twice": ("X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 5.6.7.8"),
    "proto and host": ("X-Forwarded-Proto: https", "X-Forwarded-Host: h.example"),
    "all": ("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "X-Forwarded-Host: h.example"),
    "forwarded": ("Forwarded: for=9.9.9.9", "X-Forwarded-For: 1.2.3.4"),
    "revision": ("Knative-Serving-Revision: rev", "Knative-Serving-Namespace: ns"),
    "tag": ("Knative-Serving-Tag: blue", "K-Network-Hash: x"),
    "te": ("TE: trailers",),
    "keep-alive": ("Keep-Alive: timeout=5", "X-Custom: kept"),
    "user agent": ("User-Agent: curl/8",),
}
#: What a proxy that traces adds, and how names are spelled.
_NOT_COMPARED = ("traceparent", "tracestate", "baggage", "accept-encoding")


async def heads(program: str) -> Any:
    facts = {}
    async with user() as server, proxy(program):
        for name, lines in HEADS.items():
            answer = await ask("/a%20b?c=d", *lines)
            first, *fields = server.heads[-1].split("\r\n")
            seen: dict[str, list[str]] = {}
            for field in fields:
                key, _, value = field.partition(":")
                if key and key.lower() not in _NOT_COMPARED:
                    # Several lines of one name are one list.
                    seen.setdefault(key.lower(), []).append(value.strip())
            facts[name] = [first, {k: ", ".join(v) for k, v in sorted(seen.items())}, answer]
    return facts


async def breaker(program: str) -> Any:
    async with user() as server, proxy(program, Limits(concurrency=2)):
        asking = [asyncio.create_task(ask("/hold")) for _ in range(30)]
        refused = [await task for task in itertools.islice(asyncio.as_completed(asking), 8)]
        assert not any(answer["status"] == 200 for answer in refused)

        async def full() -> bool:
            return server.under_way == 2

        await until(full)
        server.release.set()
        answered = sorted(answer["status"] for answer in await asyncio.gather(*asking))
        return refused, answered, server.most


async def timeouts(program: str) -> Any:
    facts = []
    for limits in (Limits(total_s=1), Limits(start_s=1), Limits(idle_s=1)):
        async with user(), proxy(program, limits):
            facts.append(await ask("/hold"))
    async with user() as server, proxy(program, Limits(start_s=1)):
        dripping = asyncio.create_task(ask("/drip"))
        held = await ask("/hold")  # as long as the other's limit
        server.release.set()
        return facts, held, await dripping  # which had begun, and goes on


async def broken(program: str) -> Any:
    async with user(), proxy(program):
        return (await ask("/break"))["status"]


async def upgrades(program: str) -> Any:
    async with user(), proxy(program):
        reader, writer = await asyncio.open_connection("127.0.0.1", 8012)
        writer.write(b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"ping")  # not before: Go's proxy loses what it has read of it
        echoed = await reader.readexactly(4)
        writer.close()
        return head.split(b"\r\n")[0].decode(), echoed.decode(), b"upgrade: websocket" in head.lower()


async def statistics(program: str) -> Any:
    """Averages while requests are held: two, one of them by an activator."""
    async with user() as server, proxy(program):
        held = [asyncio.create_task(ask("/hold", *lines)) for lines in ((), ("K-Proxy-Request: activator",))]
        found = stats.EMPTY
        while found.average_concurrent_requests != 2.0:
            reader, writer = await asyncio.open_connection("127.0.0.1", 9090)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            found = stats.decode_stat(body)
            await asyncio.sleep(0.05)
        server.release.set()
        await asyncio.gather(*held)
        kind = [line for line in head.decode().split("\r\n") if line.lower().startswith("content-type")]
        return found.pod_name, found[1:5], found.process_uptime > 0, [k.lower() for k in kind]


async def metrics(program: str) -> Any:
    """Names and labels of the user's requests, and counts."""
    async with user() as server, proxy(program, Limits(concurrency=3)):
        server.release.set()
        for _ in range(3):
            await ask("/hold")
        await ask("/break")
        text = (await ask("/metrics", port=9091, minor=0))["body"]
        wanted = (
            "kn_serving_invocation_duration_seconds_count",
            "kn_serving_invocation_duration_seconds_bucket",
        )
        lines = [line for line in text.splitlines() if line.startswith(wanted)]
        labels = ("http_response_status_code", "le", "otel_scope_name")
        return sorted({_of(line, labels) for line in lines if 'le="' not in line or 'le="+Inf"' in line})


def _of(line: str, names: tuple[str, ...]) -> str:
    """The sample with these labels alone, in order."""
    name, _, rest = line.partition("{")
    inside, _, value = rest.rpartition("} ")
    pairs = dict(pair.split("=", 1) for pair in inside.split(",") if "=" in pair)
    return f"{name} {[pairs[key] for key in names if key in pairs]} {value}"


async def drain(program: str) -> Any:
    """A preStop hook waits: probes fail, and requests are served."""
    async with user(), proxy(program):
        hook = asyncio.create_task(ask("/wait-for-drain", port=8022))
        kubelet = ("User-Agent: kube-probe/1.30", "K-Network-Probe: queue")

        async def fails() -> bool:
            return await status(*kubelet) != 200

        await until(fails)
        probed = await ask("/", *kubelet)
        ingress = await ask("/", "K-Network-Probe: probe", "K-Network-Hash: h")
        served = await ask("/")
        hook.cancel()
        return probed, ingress, served, (await ask("/x", port=8022))["status"]


SITUATIONS: tuple[Callable[[str], Coroutine[Any, Any, Any]], ...] = (
    probes,
    readiness,
    nobody_listens,
    heads,
    breaker,
    timeouts,
    broken,
    upgrades,
    statistics,
    metrics,
    drain,
)


async def every(program: str) -> dict[str, Any]:
    facts = {}
    for situation in SITUATIONS:
        awaiting: Awaitable[Any] = situation(program)
        try:
            facts[situation.__name__] = await asyncio.wait_for(awaiting, 60.0)
        except TimeoutError:
            facts[situation.__name__] = f"{program}: not over within 60 s"
    return facts


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print(json.dumps(asyncio.run(every(sys.argv[1]))))
