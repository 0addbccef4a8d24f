"""KV blocks between GPUs of one host: the staged path and CUDA IPC beside what plain copies reach (`bench-kv-gpu`).

Two processes, each with a paged cache (32 layers, blocks of 64 KiB a layer: a model of 8 KV heads of 128, 16 tokens a
block, 16 bits) on its GPU; with one GPU both use it. Two GPUs of one host share its memory, so that each byte passes
there twice; as two hosts would have it, one process sends to itself, and what its GPU's link carries is summed, down
and up. Blocks are scattered at random, as in a cache that has lived. The peer of the staged rows is a plain copy of
one large buffer to or from page-locked memory, of the IPC rows a plain copy from GPU to GPU. Every block is checked
on both sides by the way, and after each round compared byte for byte. Overlap: matrix products stand for a prefill in
chunks, and the blocks of each chunk leave while the next one runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import statistics
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from bench import kv_gpu_slots as kinds
from bench.kv_gpu_slots import Slots
from bench.record import record
from runtimes.transport.cuda.blocks import ALIGNED, PagedBlocks
from runtimes.transport.cuda.pipeline import Inbound, Outbound

LAYERS, BLOCK_BYTES, SLOTS = 32, 64 << 10, 8
MIB = 1 << 20
MESSAGE = struct.Struct("<2I")  # slot, and where in the transfer its blocks begin


class Line:
    """Messages of one direction and their answers, between two threads or processes."""

    def __init__(self, connection: socket.socket, size: int) -> None:
        """`size`: of what comes in."""
        self._socket, self._size = connection, size
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def ready(self) -> bool:
        return bool(self._poll.poll(0))

    def receive(self) -> bytes:
        message = self._socket.recv(self._size, socket.MSG_WAITALL)
        if len(message) < self._size:
            raise EOFError("the other side has ended")
        return message

    def send(self, message: bytes) -> None:
        self._socket.sendall(message)


class Half:
    """One direction as one process sees it; a piece is `most` blocks."""

    def __init__(
        self, role: str, cache: PagedBlocks, slots: Slots, connection: socket.socket, most: int
    ) -> None:
        self.role, self.slots, self.most = role, slots, most
        self.span = (0.0, 0.0)
        self.broken: list[int] = []
        self.ids: list[int] = []
        self.more: SimpleQueue[int] = SimpleQueue()  # how many of them are computed now
        if role == "send":
            self.line = Line(connection, 1)
            self.outbound: Outbound[tuple[int, int]] = Outbound(
                cache, most, lambda tag: self.line.send(MESSAGE.pack(*tag)), on_gpu=slots.on_gpu
            )
        else:
            self.line = Line(connection, MESSAGE.size)
            self.inbound: Inbound[int] = Inbound(cache, most, self._landed, on_gpu=slots.on_gpu)

    def run(self) -> None:
        start = time.perf_counter()
        try:
            self._send() if self.role == "send" else self._receive()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # the other process would wait for ever
        self.span = (start, time.perf_counter())

    def _send(self) -> None:
        free = deque(range(SLOTS))
        computed = 0
        for start in range(0, len(self.ids), self.most):
            while computed < min(start + self.most, len(self.ids)):
                self.outbound.flush()
                computed = self.more.get()
            while not free:
                if self.outbound.pending and not self.line.ready():
                    self.outbound.next()
                else:
                    free.append(self.line.receive()[0])
            slot = free.popleft()
            self.outbound.fill(self.slots.addresses[slot], self.ids[start : start + self.most], (slot, start))
        self.outbound.flush()
        while len(free) < SLOTS:
            free.append(self.line.receive()[0])

    def _receive(self) -> None:
        for _ in range(0, len(self.ids), self.most):
            while self.inbound.pending and not self.line.ready():
                self.inbound.next()
            slot, start = MESSAGE.unpack(self.line.receive())
            self.inbound.take(self.slots.addresses[slot], self.ids[start : start + self.most], slot)
        self.inbound.flush()

    def _landed(self, slot: int, broken: list[int]) -> None:
        self.broken += broken
        self.line.send(slot.to_bytes(1))


class Cache:
    """One process's, and which of its blocks go out and come in."""

    def __init__(self, number: int, blocks: int) -> None:
        generator = torch.Generator(device="cuda").manual_seed(number)
        total = blocks * 2
        self.tensors = [
            torch.randint(-(1 << 62), 1 << 62, (total, BLOCK_BYTES // 8), generator=generator, device="cuda")
            for _ in range(LAYERS)
        ]
        self.paged = PagedBlocks(self.tensors)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(number)).tolist()
        self.out_ids, self.in_ids = order[:blocks], order[blocks:]

    def rooms(self, slot_bytes: int) -> tuple[int, int]:
        """Blocks of a piece, and the size of a slot for them."""
        most = max(1, slot_bytes // self.paged.block_bytes)
        return most, -(-self.paged.piece_bytes(most) // ALIGNED) * ALIGNED


def serve(cache: Cache, halves: dict[str, Half], parent: Connection) -> None:
    """Rounds, as the parent wants them."""
    for role, half in halves.items():
        half.ids = cache.out_ids if role == "send" else cache.in_ids
    torch.cuda.synchronize()
    parent.send("ready")
    while (wanted := parent.recv()) is not None:
        if "receive" in wanted:  # a round that moved nothing must not pass
            index = torch.tensor(cache.in_ids, device="cuda")
            for layer in cache.tensors:
                layer[index] = 0
            torch.cuda.synchronize()
        parent.send("prepared")
        parent.recv()
        threads = [threading.Thread(target=halves[role].run) for role in wanted]
        halves["send"].more.put(len(cache.out_ids))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.cuda.synchronize()
        digests = {role: _digest(cache.tensors, halves[role].ids) for role in wanted}
        parent.send({role: (halves[role].span, halves[role].broken, digests[role]) for role in wanted})


def side(
    number: int,
    device: int,
    kind: str,
    slot_bytes: int,
    blocks: int,
    lines: dict[str, Any],
    parent: Connection,
) -> None:
    """A process. It sends on direction `number` and receives on the other."""
    torch.cuda.set_device(device)
    cache = Cache(number, blocks)
    most, size = cache.rooms(slot_bytes)
    gpu = cache.paged.device
    offer: bytes | str
    mine, offer = (kinds.on_gpu if kind == "ipc" else kinds.shared)(gpu, SLOTS, size)
    parent.send(offer)
    offered = parent.recv()
    if kind == "ipc":
        theirs = kinds.of_peer(gpu, offered, SLOTS, size)
    else:
        theirs = kinds.attached(gpu, offered, SLOTS, size)
        kinds.unlink(offered)
    halves = {
        "receive": Half("receive", cache.paged, mine, lines["receive"], most),
        "send": Half("send", cache.paged, theirs, lines["send"], most),
    }
    serve(cache, halves, parent)


def alone(device: int, slot_bytes: int, blocks: int, parent: Connection) -> None:
    """A process that sends to itself: its GPU's link carries each byte down and up."""
    torch.cuda.set_device(device)
    cache = Cache(0, blocks)
    serve(cache, looped(cache, slot_bytes), parent)


def looped(cache: Cache, slot_bytes: int) -> dict[str, Half]:
    most, size = cache.rooms(slot_bytes)
    ring = kinds.pinned(cache.paged.device, SLOTS, size)
    roles = zip(("send", "receive"), socket.socketpair(), strict=True)
    return {role: Half(role, cache.paged, ring, end, most) for role, end in roles}


def _digest(layers: list[torch.Tensor], ids: list[int]) -> list[int]:
    """Of every layer, all words in the transfer's order, weighed by place: not by the code that moves them."""
    index = torch.tensor(ids, device=layers[0].device)
    weights = torch.arange(1, len(ids) * layers[0].shape[1] + 1, device=layers[0].device).mul_(2).sub_(1)
    return [int((layer[index].flatten() * weights).sum()) for layer in layers]


def rounds(
    kind: str, devices: tuple[int, ...], slot_bytes: int, blocks: int, count: int, both: bool
) -> list[float]:
    """GB/s of each round: what arrives, both directions summed; of one process, what its GPU's link carries."""
    spawn = torch.multiprocessing.get_context("spawn")
    sockets = [socket.socketpair() for _ in devices]  # by direction: the sender's end, the receiver's
    parents, processes = [], []
    for number, device in enumerate(devices):
        ours, theirs = spawn.Pipe()
        if len(devices) == 1:
            process = spawn.Process(target=alone, args=(device, slot_bytes, blocks, theirs))
        else:
            lines = {"send": sockets[number][0], "receive": sockets[1 - number][1]}
            process = spawn.Process(
                target=side, args=(number, device, kind, slot_bytes, blocks, lines, theirs)
            )
        process.start()
        theirs.close()
        parents.append(ours)
        processes.append(process)
    try:
        if len(devices) > 1:
            offers = [parent.recv() for parent in parents]
            for parent, offer in zip(parents, reversed(offers), strict=True):
                parent.send(offer)
        for parent in parents:
            parent.recv()
        rates = []
        wanted = [["send", "receive"]] * len(devices) if both else [["send"], ["receive"]]
        for _ in range(count + 1):
            for parent, roles in zip(parents, wanted, strict=True):
                parent.send(roles)
            for parent in parents:
                parent.recv()
            for parent in parents:
                parent.send("go")
            results = [parent.recv() for parent in parents]
            spans = [result[role][0] for result in results for role in result]
            for sender, result in enumerate(results):
                receiver = results[(sender + 1) % len(results)]
                if "send" in result and (
                    result["send"][2] != receiver["receive"][2] or receiver["receive"][1]
                ):
                    raise AssertionError(f"{kind}: bytes differ on the two sides")
            size = LAYERS * blocks * BLOCK_BYTES * (2 if both else 1)
            rates.append(size / (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e9)
        return rates[1:]  # the first one warms up
    finally:
        for parent, process in zip(parents, processes, strict=True):
            with contextlib.suppress(OSError):
                parent.send(None)
            process.join(5)
            process.kill()


class Times(NamedTuple):
    """Milliseconds."""

    compute: float
    transfer: float
    serial: float
    overlapped: float

    @property
    def hidden(self) -> float:
        """The share of the transfer's time that the overlap takes away."""
        return (self.serial - self.overlapped) / self.transfer


def overlap(slot_bytes: int, blocks: int, chunks: int, products: int, count: int) -> Times:
    """A prefill of so many chunks, each of so many matrix products, whose blocks go through the host and back."""
    cache = Cache(0, blocks)
    halves = looped(cache, slot_bytes)
    halves["send"].ids, halves["receive"].ids = cache.out_ids, cache.in_ids
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    stream = torch.cuda.Stream()

    def compute(chunk: int) -> None:
        with torch.cuda.stream(stream):
            for _ in range(products):
                torch.mm(a, b, out=c)
        ends = blocks * chunk // chunks, blocks * (chunk + 1) // chunks
        cache.paged.mark(cache.out_ids[slice(*ends)], stream.cuda_stream)

    def run(computes: bool, moves: bool, at_once: bool) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        threads = [threading.Thread(target=half.run) for half in halves.values()] if moves else []
        for thread in threads:
            thread.start()
        for chunk in range(chunks):
            if computes:
                compute(chunk)
            if moves and at_once:
                halves["send"].more.put(blocks * (chunk + 1) // chunks)
            stream.synchronize()  # an engine begins its next step when it has this one's tokens
        if moves and not at_once:
            halves["send"].more.put(blocks)
        for thread in threads:
            thread.join()
        return (time.perf_counter() - start) * 1e3

    ways = {"compute": (True, False, False), "transfer": (False, True, False), "serial": (True, True, False)}
    found = {name: [run(*way) for _ in range(count + 1)][1:] for name, way in ways.items()}
    found["overlapped"] = [run(True, True, True) for _ in range(count + 1)][1:]
    if (
        _digest(cache.tensors, cache.out_ids) != _digest(cache.tensors, cache.in_ids)
        or halves["receive"].broken
    ):
        raise AssertionError("overlap: bytes differ on the two sides")
    return Times(**{name: statistics.median(times) for name, times in found.items()})


def plain(copy: Callable[[], None], size: int, count: int) -> list[float]:
    """GB/s of a plain copy, `count` times after a warm-up."""
    rates = []
    for _ in range(count + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        copy()
        torch.cuda.synchronize()
        rates.append(size / (time.perf_counter() - start) / 1e9)
    return rates[1:]


def limits(devices: tuple[int, int], count: int) -> dict[str, float]:
    """What plain copies of large buffers reach: in pieces of 16 MiB, on one stream a direction."""
    size, pieces = 16 * MIB, 64
    host = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    first, second = (torch.empty(size, dtype=torch.uint8, device=f"cuda:{device}") for device in devices)
    down, up = torch.cuda.Stream(devices[0]), torch.cuda.Stream(devices[1])

    def copies(*pairs: tuple[torch.Tensor, torch.Tensor, torch.cuda.Stream]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(pieces):
                for target, source, stream in pairs:
                    with torch.cuda.stream(stream):
                        target.copy_(source, non_blocking=True)
            for *_, stream in pairs:
                stream.synchronize()

        return run

    d2h, h2d = (host[0], first, down), (second, host[1], up)
    found = {
        "down": statistics.median(plain(copies(d2h), size * pieces, count)),
        "up": statistics.median(plain(copies(h2d), size * pieces, count)),
        "staged": statistics.median(plain(copies(d2h, h2d), size * pieces, count)),
    }
    other = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    down2, up2 = torch.cuda.Stream(devices[1]), torch.cuda.Stream(devices[0])
    back, forth = (torch.empty(size, dtype=torch.uint8, device=f"cuda:{device}") for device in devices)
    found["one GPU"] = statistics.median(plain(copies(d2h, (back, other[1], up2)), 2 * size * pieces, count))
    duplex = copies(d2h, h2d, (other[0], forth, down2), (back, other[1], up2))
    found["staged both"] = statistics.median(plain(duplex, 2 * size * pieces, count))
    if devices[0] != devices[1]:
        peer = torch.empty(size, dtype=torch.uint8, device=f"cuda:{devices[1]}")
        found["peer"] = statistics.median(plain(copies((peer, first, down)), size * pieces, count))
        own = torch.cuda.Stream(devices[0]), torch.cuda.Stream(devices[1])
        duplex = copies((peer, first, own[0]), (back, forth, own[1]))
        found["peer both"] = statistics.median(plain(duplex, 2 * size * pieces, count))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--blocks", type=int, default=512, help="blocks a transfer (512 x 32 layers x 64 KiB = 1 GiB)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slot-mib", type=int, nargs="*", default=[4, 8, 12])
    parser.add_argument("--ipc-slot-mib", type=int, nargs="*", default=[8, 32])
    parser.add_argument(
        "--overlap", type=int, default=8, help="MiB of a slot while prefill runs; 0: not measured"
    )
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument(
        "--products", type=int, default=20, help="of 8192 x 8192 matrices, in each chunk of prefill"
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-kv-gpu needs a GPU with CUDA: none is visible to torch", file=sys.stderr)
        return 2
    devices = (0, 1) if torch.cuda.device_count() > 1 else (0, 0)
    found = limits(devices, args.rounds)
    print({name: round(value, 1) for name, value in found.items()}, flush=True)
    name = torch.cuda.get_device_name(0)
    conditions = (
        f"{name}, {'two GPUs' if devices[0] != devices[1] else 'one GPU for both'}; {args.blocks} scattered blocks x "
        f"{LAYERS} layers x {BLOCK_BYTES >> 10} KiB, two processes, {args.rounds} rounds, medians; checksums on"
    )
    pinned = "plain pinned copies"
    rows = []

    def row(metric: str, rates: list[float], limit: float, peer: str) -> None:
        ours = round(statistics.median(rates), 2)
        print(metric, [round(rate, 1) for rate in rates], flush=True)
        rows.append(
            {
                "metric": metric,
                "ours": ours,
                "peer": round(limit, 2),
                "peer_name": peer,
                "unit": "GB/s",
                "better": "higher",
                "conditions": conditions,
            }
        )

    for mib in args.slot_mib:
        rates = rounds("staged", devices[:1], mib * MIB, args.blocks, args.rounds, True)
        row(
            f"one GPU sends and receives through the host, {mib} MiB slots, down + up",
            rates,
            found["one GPU"],
            pinned,
        )
    for mib in args.slot_mib:
        for both, limit in ((False, found["staged"]), (True, found["staged both"])):
            rates = rounds("staged", devices, mib * MIB, args.blocks, args.rounds, both)
            how = "both ways" if both else "one way"
            row(f"staged through the host, {mib} MiB slots, {how}", rates, limit, pinned)
    for mib in args.ipc_slot_mib if "peer" in found else ():
        for both, limit in ((False, found["peer"]), (True, found["peer both"])):
            rates = rounds("ipc", devices, mib * MIB, args.blocks, args.rounds, both)
            row(
                f"CUDA IPC, {mib} MiB slots, {'both ways' if both else 'one way'}",
                rates,
                limit,
                "plain peer copies",
            )
    if args.overlap:
        times = overlap(args.overlap * MIB, args.blocks, args.chunks, args.products, args.rounds)
        print(times, flush=True)
        told = (
            f"{name}, one GPU; {args.blocks} scattered blocks x {LAYERS} layers x {BLOCK_BYTES >> 10} KiB; "
            f"prefill: {args.chunks} x {args.products} products of 8192 x 8192 in bf16; alone: prefill "
            f"{times.compute:.1f} ms, transfer {times.transfer:.1f} ms; {times.hidden:.1%} of the transfer hidden"
        )
        rows.append(
            {
                "metric": "prefill in chunks and its blocks through the host and back, overlapped",
                "ours": round(times.overlapped, 2),
                "peer": round(times.serial, 2),
                "peer_name": "one after the other",
                "unit": "ms",
                "better": "lower",
                "conditions": told,
            }
        )
    record("kv_gpu", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
