"""Calls between functions on one connection, beside grpc.aio with the same fields (`make bench-rpc`).

The listening process is pinned to one core, the calling one to another, over loopback. Ours runs with everything
on: authenticated hello, deadlines, epochs, trace context, typed messages checked when decoded. The peer is grpc.aio
on the same loop, with protobuf messages of the same fields and a deadline. The request is a node's heartbeat (Update:
ten fields, two of them resource vectors), its reply an acknowledgement; a second one is a shard's demand and the
grant that answers it. Rounds are interleaved, the median counts. CPU per call is that of both processes together.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bench.record import record
from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.rpc import Caller, Rpc, Trace
from kserve_ext.wire.messages import Ack, Coordinate, CoordinateReply, Demand, Grant, Message, Update

KEY = bytes(range(32))
IN_FLIGHT = (1, 16, 128)
TARGET = 60_000
GRPC = "grpc.aio with protobuf"
Figures = dict[tuple[str, int], list[float]]
_STARTED = 1_763_928_000_123_456_789
_TINY, _INSTANCE = RevisionKey("default/tiny-00001"), InstanceID("tiny-00001-0a1b2c3d")

STATUS = NodeStatus(
    node=NodeID("node-0"),
    addr="127.0.0.1:41234",
    incarnation=_STARTED,
    seq=1234,
    capacity=Resources(8000, 16_000, 1, 24_000),
    free=Resources(4000, 8000, 0, 12_000),
    slots=(("runtimes.vllm_pd", 2),),
    models=("pvc://models/tiny",),
    instances=3,
)
DEMAND = Demand(_TINY, 17, 3, 5, 2, 4, 4, 1.25, 0.5, ((_INSTANCE, 5),), ((_INSTANCE, 8),))
GRANT = Grant(_TINY, FunctionID("dispatch-0"), 9, 3.0, ((_INSTANCE, "127.0.0.1:45678", 8),))
HEARTBEAT: tuple[Message, Message] = (Update(STATUS), Ack(42))
COORDINATE: tuple[Message, Message] = (
    Coordinate(FunctionID("dispatch-1"), "127.0.0.1:41235", 42, (DEMAND,)),
    CoordinateReply((GRANT,), 42),
)


# --- ours


async def serve_ours() -> None:
    rpc = Rpc("server", KEY, epoch=lambda: 42)

    def answer(reply: Message) -> Callable[[Message, Caller], Message]:
        return lambda message, caller: reply

    for message, reply in (HEARTBEAT, COORDINATE):
        rpc.handle(type(message), answer(reply))
    print(await rpc.listen("127.0.0.1"), flush=True)
    await asyncio.Event().wait()


class Ours:
    """One way of calling ours: `soon` with callbacks (hot paths), or one coroutine a call."""

    def __init__(self, addr: str, exchange: tuple[Message, Message], *, soon: bool) -> None:
        self.addr = addr
        self.message, self.reply = exchange
        self.soon = soon
        self.rpc = Rpc("client", KEY, epoch=lambda: 42)
        self.trace = Trace.new()

    async def one(self) -> None:
        reply = await self.rpc.call(self.addr, self.message, trace=self.trace)
        if reply != self.reply:
            raise RuntimeError(f"wrong reply {reply}")

    async def seconds(self, calls: int, in_flight: int) -> float:
        if not self.soon:
            return await _coroutines(self.one, calls, in_flight)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left, open_calls = calls - in_flight, in_flight
        call_soon, addr, message, trace, expected = (
            self.rpc.call_soon,
            self.addr,
            self.message,
            self.trace,
            self.reply,
        )

        def done(reply: object) -> None:
            nonlocal left, open_calls
            if reply != expected:
                ended.set_exception(RuntimeError(f"wrong reply {reply}"))
            elif left:
                left -= 1
                call_soon(addr, message, done, 5.0, trace)
            else:
                open_calls -= 1
                if not open_calls:
                    ended.set_result(None)

        began = perf_counter()
        for _ in range(in_flight):
            call_soon(addr, message, done, 5.0, trace)
        await ended
        return perf_counter() - began


# --- grpc.aio, the same fields


def _protobuf() -> tuple[Any, Any]:
    """Update and Ack as protobuf classes."""
    kinds = {"str": 9, "int": 3, "bool": 8}
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")

    def define(name: str, fields: list[tuple[str, str, bool]]) -> None:
        message = file.message_type.add(name=name)
        for number, (field, kind, many) in enumerate(fields, 1):
            label = 3 if many else 1
            if kind in kinds:
                message.field.add(name=field, number=number, type=kinds[kind], label=label)
            else:
                message.field.add(name=field, number=number, type=11, label=label, type_name=f".bench.{kind}")

    define("Resources", [(field, "int", False) for field in Resources._fields])
    define("Slot", [("module", "str", False), ("ready", "int", False)])
    known = {"slots": ("Slot", True), "models": ("str", True)}
    known |= dict.fromkeys(("capacity", "free"), ("Resources", False))
    plain = {str: "str", bool: "bool", int: "int"}
    fields = []
    for field, value in STATUS._asdict().items():
        kind, many = known[field] if field in known else (plain[type(value)], False)
        fields.append((field, kind, many))
    define("Update", fields)
    define("Ack", [("epoch", "int", False)])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    update, ack = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}"))
        for name in ("Update", "Ack")
    )
    return update, ack


async def serve_grpc() -> None:
    import grpc

    update, ack = _protobuf()

    async def answer(request: Any, context: Any) -> Any:
        return ack(epoch=42)

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer, update.FromString, ack.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Update": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


class Grpc:
    def __init__(self, addr: str) -> None:
        import grpc

        self.update, self.ack = _protobuf()
        self.channel = grpc.aio.insecure_channel(addr)
        self.method = self.channel.unary_unary(
            "/bench/Update", self.update.SerializeToString, self.ack.FromString
        )
        named = STATUS._asdict()
        named["capacity"], named["free"] = STATUS.capacity._asdict(), STATUS.free._asdict()
        named["slots"] = [{"module": module, "ready": ready} for module, ready in STATUS.slots]
        self.message = self.update(**named)

    async def one(self) -> None:
        reply = await self.method(self.message, timeout=5.0)
        if reply.epoch != 42:
            raise RuntimeError(f"wrong reply {reply}")

    async def seconds(self, calls: int, in_flight: int) -> float:
        return await _coroutines(self.one, calls, in_flight)


# --- the run


async def _coroutines(one: Callable[[], Awaitable[None]], calls: int, in_flight: int) -> float:
    each = calls // in_flight

    async def caller() -> None:
        for _ in range(each):
            await one()

    began = perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return (perf_counter() - began) * calls / (each * in_flight)


class Server:
    """The listening process, pinned to the first core that we may use."""

    def __init__(self, kind: str) -> None:
        argv = [sys.executable, "-m", "bench.rpc", "--serve", kind]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.addr = self.process.stdout.readline().strip()
        if not self.addr:
            raise SystemExit(f"error: the {kind} server did not start (exit {self.process.wait()})")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def cpu_seconds(server: Server) -> float:
    """CPU time of this process and of the server so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(ours: Server, peer: Server, rounds: int, seconds: float) -> tuple[Figures, Figures]:
    """Calls per second and CPU microseconds per call of every kind and number in flight, one figure a round."""
    grpc_aio = Grpc(peer.addr)
    kinds: dict[str, Ours | Grpc] = {
        "heartbeat": Ours(ours.addr, HEARTBEAT, soon=True),
        "heartbeat, a coroutine a call": Ours(ours.addr, HEARTBEAT, soon=False),
        "demand and grant": Ours(ours.addr, COORDINATE, soon=True),
        GRPC: grpc_aio,
    }
    rates: dict[tuple[str, int], list[float]] = {}
    cpu: dict[tuple[str, int], list[float]] = {}
    for nth in range(rounds + 1):  # the first one warms up, and says how many calls fill the time
        for name, kind in kinds.items():
            for in_flight in IN_FLIGHT:
                known = rates.get((name, in_flight))
                calls = max(4 * in_flight, int(known[-1] * seconds)) if known else 20 * in_flight + 500
                began = cpu_seconds(peer if kind is grpc_aio else ours)
                rate = calls / await kind.seconds(calls, in_flight)
                took = cpu_seconds(peer if kind is grpc_aio else ours) - began
                rates.setdefault((name, in_flight), []).append(rate)
                cpu.setdefault((name, in_flight), []).append(took / calls * 1e6)
        print(f"round {nth} of {rounds}", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {k: v[1:] for k, v in rates.items()}, {k: v[1:] for k, v in cpu.items()}


def rows(rates: Figures, cpu: Figures, rounds: int, seconds: float) -> list[dict[str, Any]]:
    spread = max((max(v) - min(v)) / statistics.median(v) for v in rates.values())
    conditions = (
        f"one connection over loopback between two cores, hello, deadline, epoch and trace on; median of {rounds} "
        f"interleaved rounds of {seconds} s; nice {os.nice(0)}; "
        f"largest spread {spread:.0%}; load average {os.getloadavg()[0]:.1f}"
    )
    out = []
    for what, unit, better, figures in (
        ("calls/s", "calls/s", "higher", rates),
        ("CPU per call", "us", "lower", cpu),
    ):
        medians = {key: round(statistics.median(values), 1) for key, values in figures.items()}
        for (name, in_flight), ours in medians.items():
            if name == GRPC:
                continue
            same = name.startswith("heartbeat")
            row = {"metric": f"rpc {what}, {name}, {in_flight} in flight", "ours": ours, "unit": unit}
            row |= {"peer": medians[GRPC, in_flight] if same else None, "peer_name": GRPC if same else None}
            out.append(row | {"better": better, "conditions": conditions})
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rpc", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement in a round")
    parser.add_argument("--nice", type=int, default=0, help="added to the priority number of all processes")
    parser.add_argument("--serve", choices=("ours", "grpc"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.nice(args.nice)
    if args.serve:
        os.sched_setaffinity(0, {cores[0]})
        uvloop.run(serve_ours() if args.serve == "ours" else serve_grpc())
        return 0
    ours, peer = Server("ours"), Server("grpc")
    try:
        os.sched_setaffinity(0, {cores[-1]})
        rates, cpu = uvloop.run(measure(ours, peer, args.rounds, args.seconds))
    finally:
        ours.end()
        peer.end()
    record("rpc", rows(rates, cpu, args.rounds, args.seconds))
    reached = statistics.median(rates["heartbeat", 16])
    print(
        f"{'reached' if reached >= TARGET else 'MISSED'}: {reached:,.0f} calls/s at 16 in flight, target {TARGET:,}"
    )
    return 0 if reached >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
