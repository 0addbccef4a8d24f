"""The measurements of bench/kv.py, inside the machine: one JSON line [name, value] each, round after round.

This process is the near end of the wire and asks; a second one is the far end. Bandwidths are in MB/s, times in
microseconds or milliseconds, CPU in seconds of the whole machine a GiB, since soft-RoCE works in nobody's time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

from runtimes.transport.channel import ChannelError, Extent, Frame, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import WINDOW, Channel
from runtimes.transport.verbs import cards, memory
from runtimes.transport.verbs.choice import Place, Wanted
from runtimes.transport.verbs.queue import QueuePair
from runtimes.transport.verbs.work import Piece

KEY = bytes(32)
NEAR, FAR = Wanted(("rxe2",)), Wanted(("rxe1",))
FAR_ADDRESS = "198.51.100.1"
MIB = 1 << 20
#: Bytes of one WRITE -> WRITEs in one measurement.
SIZES = {4096: 64000, 64 << 10: 16000, MIB: 1200, 16 * MIB: 64}
MESSAGES = 8000
PERFTEST_S = 4  # of which the middle half counts
SET_UPS = 10
CHANNEL_BYTES = 192 * MIB
BLOCK = 64 << 10
BLOCKS = 16  # in one write of a channel
RUNGS: tuple[Rung, ...] = ("rdma", "rdma-staged", "tcp")
_POPULATE = 23  # MADV_POPULATE_WRITE
_FAR_QUEUE_PAIRS = 2  # the kernel's own, and the one of far_queue


def say(name: str, value: float) -> None:
    print(json.dumps([name, value]), flush=True)


def resident(size: int) -> mmap.mmap:
    """Memory that is all there: under User-Mode Linux the first touch of a page is a hundred times dearer."""
    made = mmap.mmap(-1, size)
    made.madvise(_POPULATE)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(made)))
    for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
        ctypes.CDLL(None).mprotect(address, ctypes.c_size_t(size), protection)
    return made


def busy_seconds() -> float:
    """Of the machine so far: everything but idling and waiting."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / 100


# --- queue pairs


class End:
    """A queue pair with registered memory, as one line of text for the other end."""

    def __init__(self, wanted: Wanted, size: int) -> None:
        self.place: Place = cards.find(wanted)[0]
        card = cards.take(self.place)
        self.queue = QueuePair(card)
        self.region = memory.register(card, resident(size))

    def card(self) -> str:
        region = self.region
        numbers = (self.queue.number, self.queue.first_packet, region.address, region.key.remote)
        return json.dumps([*numbers, self.place.gid])

    def connect(self, card: str) -> tuple[int, int]:
        """Address and key of the other end's memory."""
        number, packet, address, key, gid = json.loads(card)
        self.queue.connect(number, packet, gid, 0, self.place.mtu, 16)
        return address, key


def far_queue() -> None:
    """Sends every message back, until it is killed."""
    end = End(FAR, max(SIZES))
    print(end.card(), flush=True)
    end.connect(sys.stdin.readline())
    print("up", flush=True)
    while True:
        got = end.queue.receive()
        end.queue.send(got if isinstance(got, bytes) else b"")


@contextmanager
def far_end(kind: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.kv_link", "--far", kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def write(queue: QueuePair, piece: Piece, count: int) -> float:
    """Seconds, from the first request to the last completion."""
    together = min(16, count)
    began = time.perf_counter()
    for _ in range(count // together):
        ticket = queue.write([piece] * together)
    queue.wait(ticket)
    return time.perf_counter() - began


def one_way_us(queue: QueuePair) -> float:
    """Half of a round trip: the median, with a look at the clock in each."""
    times = [time.perf_counter()]
    for _ in range(MESSAGES):
        queue.send(bytes(64))
        queue.receive()
        times.append(time.perf_counter())
    return statistics.median(after - before for before, after in pairwise(times)) / 2 * 1e6


# --- perftest and iperf3


def ib_write_bw(size: int) -> float:
    """MB/s, from the WRITEs that it counts in a time by the alarm clock.

    perftest's own figures rest on an estimate of the processor's clock rate, which is wrong by half whenever the
    estimating is interrupted.
    """
    words = ("-s", str(size), "-D", str(PERFTEST_S), "-f", "1")
    lines = perftest("ib_write_bw", *words).splitlines()
    (count,) = [int(line.split()[1]) for line in lines if line.split()[:1] == [str(size)]]
    return count * size / (PERFTEST_S - 2) / 1e6


def ib_send_lat() -> float:
    """One way in microseconds: its median, in cycles of a clock whose rate the kernel knows better than perftest."""
    lines = perftest("ib_send_lat", "-s", "64", "-n", str(MESSAGES), "-e", "-C").splitlines()
    (median,) = [float(line.split()[4]) for line in lines if line.split()[:1] == ["64"]]
    rate = re.search(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
    assert rate is not None
    return median / float(rate[1])


def perftest(program: str, *words: str) -> str:
    """What it prints at the near end."""
    common = ["-x", "1", "-F", *words]
    server = subprocess.Popen(
        [program, "-d", "rxe1", *common], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _listens(18515)
    client = [program, "-d", "rxe2", *common, FAR_ADDRESS]
    text = subprocess.run(
        client, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout
    server.wait()
    return text


def iperf3() -> float:
    server = subprocess.Popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    _listens(5201)
    command = ["iperf3", "-c", FAR_ADDRESS, "-n", str(CHANNEL_BYTES), "-J"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    server.wait()
    return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 8e6


def _listens(port: int) -> None:
    """Until somebody does, by the kernel's table: a connection of ours would be taken for the client's."""
    wanted = f":{port:04X}"
    while True:
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                local, _, state = line.split()[1:4]
                if local.endswith(wanted) and state == "0A":
                    return
        time.sleep(0.02)


# --- channels


def extent(buffer: memoryview) -> Extent:
    return Extent(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer), owner=buffer)


class Ear:
    def __init__(self) -> None:
        self.memory = memoryview(resident(BLOCK * BLOCKS))
        self.done_with: SimpleQueue[int] = SimpleQueue()

    def message(self, channel: object, body: bytes) -> None:
        return

    def lost(self, channel: object, error: ChannelError) -> None:
        self.done_with.put(-1)

    def window(self, frame: Frame) -> memoryview | None:
        return self.memory

    def landed(self, frame: Frame, broken: list[int]) -> None:
        if broken:
            raise SystemExit(f"blocks {broken} arrived broken")

    def done(self, transfer: int, blocks: int) -> None:
        self.done_with.put(transfer)


def far_channel() -> None:
    """Prefill: writes as many blocks as each message asks for."""

    class Asked(Ear):
        def message(self, channel: object, body: bytes) -> None:
            assert isinstance(channel, Channel)
            asked.put((channel, int(body)))

    def accepted(channel: Channel) -> None:
        channel.start(Asked(), None)
        channel.use([extent(source)])

    asked: SimpleQueue[tuple[Channel, int]] = SimpleQueue()
    source = memoryview(resident(BLOCK * BLOCKS))
    who = Identity("far", 1, Layout())
    listener = Listener(KEY, lambda: who, accepted, RUNGS, FAR_ADDRESS, rdma=FAR)
    print(listener.addr, flush=True)
    blocks = [source[at : at + BLOCK] for at in range(0, len(source), BLOCK)]
    while True:
        channel, writes = asked.get()
        try:
            for _ in range(writes):
                channel.write(1, 0, 0, blocks)
            channel.flush(1)
            channel.finish(1, writes * BLOCKS)
        except ChannelError:
            continue


def channel(addr: str, rung: Rung) -> tuple[float, float]:
    """MB/s and CPU seconds a GiB, checksums, copies and credit and all."""
    made = dial(addr, KEY, Identity("near", 1, Layout()), rungs=(rung,), rdma=NEAR)
    ear = Ear()
    made.start(ear, ear)
    made.expose([extent(ear.memory)])
    while not made.rungs:
        time.sleep(0.001)
    made.send(b"16")  # touches the rings
    ear.done_with.get()
    busy, began = busy_seconds(), time.perf_counter()
    made.send(b"%d" % (CHANNEL_BYTES // (BLOCK * BLOCKS)))
    if ear.done_with.get() < 0:
        raise SystemExit(f"the channel was lost: {made.lost}")
    took, used = time.perf_counter() - began, busy_seconds() - busy
    made.close()
    return CHANNEL_BYTES / took / 1e6, used / CHANNEL_BYTES * (1 << 30)


def set_up_ms(addr: str) -> float:
    """Until it can be used, its ring apart: of two pages."""
    began = time.perf_counter()
    made = dial(addr, KEY, Identity("near", 1, Layout()), rungs=("rdma-staged",), rdma=NEAR, window=8192)
    took = time.perf_counter() - began
    made.close()
    while _queue_pairs("rxe1") > _FAR_QUEUE_PAIRS:
        pass  # the far end tears down behind us, on the same processor
    return took * 1e3


def _queue_pairs(device: str) -> int:
    text = subprocess.run(
        ["rdma", "-j", "resource", "show"], capture_output=True, text=True, check=True
    ).stdout
    return next(int(each["qp"]) for each in json.loads(text) if each["ifname"] == device)


def ring_ms() -> float:
    card = cards.take(cards.find(NEAR)[0])
    began = time.perf_counter()
    region = memory.register(card, mmap.mmap(-1, WINDOW))
    took = time.perf_counter() - began
    region.close()
    cards.give_back(card)
    return took * 1e3


# --- the run


def one_round(end: End, remote: tuple[int, int], addr: str) -> None:
    for size, count in SIZES.items():
        piece = end.region.piece(0, size, *remote)
        busy = busy_seconds()
        took = write(end.queue, piece, count)
        if size == MIB:
            say("cpu write", (busy_seconds() - busy) / (size * count) * (1 << 30))
        say(f"write {size}", size * count / took / 1e6)
        say(f"ib_write_bw {size}", ib_write_bw(size))
    say("send", one_way_us(end.queue))
    say("ib_send_lat", ib_send_lat())
    for rung in RUNGS:
        rate, cpu = channel(addr, rung)
        say(f"channel {rung}", rate)
        say(f"cpu {rung}", cpu)
    say("iperf3", iperf3())
    for _ in range(SET_UPS):
        say("set-up", set_up_ms(addr))
    say("ring", ring_ms())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kv_link", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--far", choices=("queue", "channel"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.far:
        return {"queue": far_queue, "channel": far_channel}[args.far]()
    end = End(NEAR, max(SIZES))
    with far_end("queue") as queue, far_end("channel") as channels:
        remote = end.connect(hear(queue))
        tell(queue, end.card())
        hear(queue)
        addr = hear(channels).strip()
        set_up_ms(addr)
        for number in range(args.rounds):
            one_round(end, remote, addr)
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
