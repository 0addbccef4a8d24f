"""KV blocks between GPUs of one host: the staged path and CUDA IPC beside what plain copies reach (`bench-kv-gpu`).

Two processes, each with a paged cache (32 layers, blocks of 64 KiB a layer: a model of 8 KV heads of 128, 16 tokens a
block, 16 bits) on its GPU; with one GPU both use it. Blocks are scattered at random, as in a cache that has lived.
The peer of the staged rows is a plain copy of one large buffer to or from page-locked memory, of the IPC rows a plain
copy from GPU to GPU. Every block is checksummed on both sides, and after each round compared byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.record import record
from kserve_ext.core.kv_chunks import Chunk, chunks
from runtimes.transport.cuda import slots as kinds
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.pipeline import Inbound, Outbound
from runtimes.transport.cuda.slots import SlotError, Slots

LAYERS, BLOCK_BYTES, SLOTS = 32, 64 << 10, 8
MIB = 1 << 20
MESSAGE = struct.Struct("<5I")  # slot and chunk


class Half:
    """One direction as one process sees it."""

    def __init__(self, role: str, cache: PagedBlocks, slots: Slots, pipe: Connection, ids: list[int]):
        self.role, self.cache, self.slots, self.pipe, self.ids = role, cache, slots, pipe, ids
        if role == "send":
            self.outbound = Outbound(cache, slots)
        else:
            self.inbound = Inbound(cache, slots, lambda slot: pipe.send_bytes(slot.to_bytes(1)))
        self.span = (0.0, 0.0)
        self.broken: list[int] = []

    def run(self) -> None:
        start = time.perf_counter()
        try:
            self._send() if self.role == "send" else self._receive()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # the other process would wait for ever
        self.span = (start, time.perf_counter())

    def _send(self) -> None:
        free = list(range(SLOTS))

        def acquire(wait: bool) -> int | None:
            while self.pipe.poll() or (not free and wait):
                free.append(self.pipe.recv_bytes()[0])
            return free.pop(0) if free else None

        todo = chunks(self.cache.layers, 0, len(self.ids), self.outbound.rows)
        self.outbound.send(
            self.ids, todo, acquire, lambda slot, chunk: self.pipe.send_bytes(MESSAGE.pack(slot, *chunk))
        )
        self.pipe.send_bytes(b"")
        while len(free) < SLOTS:
            free.append(self.pipe.recv_bytes()[0])

    def _receive(self) -> None:
        expected = self.inbound.expect(self.ids)
        while True:
            if not self.pipe.poll():
                self.inbound.flush()
            message = self.pipe.recv_bytes()
            if not message:
                break
            slot, *numbers = MESSAGE.unpack(message)
            self.inbound.take(slot, Chunk(*numbers), expected)
        self.broken = self.inbound.finish(expected)


def side(
    number: int,
    device: int,
    kind: str,
    slot_bytes: int,
    blocks: int,
    pipes: dict[str, Any],
    parent: Connection,
) -> None:
    """A process. It sends on direction `number` and receives on the other."""
    torch.cuda.set_device(device)
    generator = torch.Generator(device="cuda").manual_seed(number)
    total = blocks * 2
    tensors = [
        torch.randint(-(1 << 62), 1 << 62, (total, BLOCK_BYTES // 8), generator=generator, device="cuda")
        for _ in range(LAYERS)
    ]
    cache = PagedBlocks(tensors)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(number)).tolist()
    out_ids, in_ids = order[:blocks], order[blocks:]
    halves: dict[str, Half] = {}
    pipe = pipes[f"{1 - number}-receive"]
    offer: bytes | str
    if kind == "ipc":
        slots, offer = kinds.on_gpu(cache.device, SLOTS, slot_bytes)
    else:
        slots, offer = kinds.shared(cache.device, SLOTS, slot_bytes)
    pipe.send(offer)
    halves["receive"] = Half("receive", cache, slots, pipe, in_ids)
    pipe = pipes[f"{number}-send"]
    offered = pipe.recv()
    if kind == "ipc":
        slots = kinds.of_peer(cache.device, offered, SLOTS, slot_bytes)
    else:
        slots = kinds.attached(cache.device, offered, SLOTS, slot_bytes)
        kinds.unlink(offered)
    halves["send"] = Half("send", cache, slots, pipe, out_ids)
    torch.cuda.synchronize()
    parent.send("ready")
    while (wanted := parent.recv()) is not None:
        if "receive" in wanted:  # a round that moved nothing must not pass
            index = torch.tensor(in_ids, device="cuda")
            for layer in tensors:
                layer[index] = 0
            torch.cuda.synchronize()
        parent.send("prepared")
        parent.recv()
        threads = [threading.Thread(target=halves[role].run) for role in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.cuda.synchronize()
        digests = {role: _digest(tensors, halves[role].ids) for role in wanted}
        parent.send({role: (halves[role].span, halves[role].broken, digests[role]) for role in wanted})


def _digest(layers: list[torch.Tensor], ids: list[int]) -> list[int]:
    """Of every layer, all words in the transfer's order, weighed by place: not by the code that moves them."""
    index = torch.tensor(ids, device=layers[0].device)
    weights = torch.arange(1, len(ids) * layers[0].shape[1] + 1, device=layers[0].device).mul_(2).sub_(1)
    return [int((layer[index].flatten() * weights).sum()) for layer in layers]


def rounds(
    kind: str, devices: tuple[int, int], slot_bytes: int, blocks: int, count: int, both: bool
) -> list[float]:
    """GB/s of each round, both directions summed."""
    spawn = torch.multiprocessing.get_context("spawn")
    pipes: list[dict[str, Any]] = [{}, {}]
    for direction in (0, 1):
        send, receive = spawn.Pipe()
        pipes[direction][f"{direction}-send"] = send
        pipes[1 - direction][f"{direction}-receive"] = receive
    parents, processes = [], []
    for number, device in enumerate(devices):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=side, args=(number, device, kind, slot_bytes, blocks, pipes[number], theirs)
        )
        process.start()
        theirs.close()
        parents.append(ours)
        processes.append(process)
    try:
        for parent in parents:
            answer = parent.recv()
            if answer != "ready":
                raise SlotError(answer)
        rates = []
        for _ in range(count + 1):
            wanted = (["send", "receive"], ["send", "receive"]) if both else (["send"], ["receive"])
            for parent, roles in zip(parents, wanted, strict=True):
                parent.send(roles)
            for parent in parents:
                parent.recv()
            for parent in parents:
                parent.send("go")
            results = [parent.recv() for parent in parents]
            spans = [result[role][0] for result in results for role in result]
            for a, b in ((0, 1), (1, 0)) if both else ((0, 1),):
                if results[a]["send"][2] != results[b]["receive"][2] or results[b]["receive"][1]:
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
        for both, limit in ((False, found["staged"]), (True, found["staged both"])):
            rates = rounds("staged", devices, mib * MIB, args.blocks, args.rounds, both)
            row(
                f"staged through the host, {mib} MiB slots, {'both ways' if both else 'one way'}",
                rates,
                limit,
                "plain pinned copies",
            )
    for mib in args.ipc_slot_mib if "peer" in found else ():
        for both, limit in ((False, found["peer"]), (True, found["peer both"])):
            rates = rounds("ipc", devices, mib * MIB, args.blocks, args.rounds, both)
            row(
                f"CUDA IPC, {mib} MiB slots, {'both ways' if both else 'one way'}",
                rates,
                limit,
                "plain peer copies",
            )
    record("kv_gpu", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
