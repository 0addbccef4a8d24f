"""Decode's and prefill's halves with caches on a stand-in for a GPU, over real channels."""

from __future__ import annotations

from queue import SimpleQueue

import pytest
import torch

from runtimes.transport.channel import Rung
from runtimes.transport.cuda import mover
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome, Prompt
from runtimes.vllm_pd.pushing import Pushes
from tests.transport.host_gpu import paged

BLOCKS, LAYERS, WAIT_S = 40, 3, 60.0


class Gpu(KvMemory):
    """Whose marks say of which step they are."""

    def __init__(self, layers: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.layers_ = layers
        self.marked: list[list[int]] = []
        self.register_paged(paged(layers, monkeypatch, BLOCKS))

    def mark(self, blocks: object) -> None:
        assert isinstance(blocks, list)
        self.marked.append(blocks)


def cache(seed: int, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    generator = torch.Generator().manual_seed(seed)
    shape = 2, BLOCKS, 4, 16  # keys and values apart
    layers = [torch.randint(-(1 << 62), 1 << 62, shape, generator=generator) for _ in range(LAYERS)]
    return Gpu(layers, monkeypatch)


@pytest.mark.parametrize("rung", ["shm", "tcp"])
@pytest.mark.parametrize("window", [1 << 16, 8 * 3584])
def test_chunks_arrive_with_little_and_with_much_room(
    rung: Rung, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "PIECE", 3 * 3072)
    source, target = cache(1, monkeypatch), cache(2, monkeypatch)
    assert (source.layers, source.block_bytes) == (1, 2 * LAYERS * 4 * 16 * 8)
    pushes, landings = Pushes(source, 60.0), Landings(target, 60.0)
    started: SimpleQueue[tuple[int, jobs.Prefill]] = SimpleQueue()
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    pushes.accept_jobs(lambda key, job: started.put((key, job)), lambda key: None)
    accepted: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(b"key", lambda: Identity("p", 1, Layout()), accepted.put)
    channel = dial(listener.addr, b"key", Identity("d", 1, Layout()), rungs=(rung,), window=window)
    far = accepted.get(timeout=WAIT_S)
    pushes.attach(far)
    landings.attach(channel)
    sources, targets = [7, 3, *range(20, 40)], [*range(1, 19), 30, 25, 39, 0]
    number = landings.open(channel, Prompt("request", list(range(90)), outcomes.put, lambda job: None))
    key, _ = started.get(timeout=WAIT_S)
    landings.reserve(number, "engine-d", 0, targets, 90)
    for whole in (5, 16, len(sources)):
        pushes.computed(key, "engine-p", sources, whole, whole == len(sources))
    outcome = outcomes.get(timeout=WAIT_S)
    assert (outcome.reason, outcome.rung) == ("", rung)
    assert outcome.bytes == len(sources) * source.block_bytes
    assert source.marked == [sources[:5], sources[5:16], sources[16:]]
    for a, b in zip(source.layers_, target.layers_, strict=True):
        assert torch.equal(a[:, sources], b[:, targets])
    channel.close()
    far.close()
    listener.close()


def test_parts_of_blocks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="same degree"):
        cache(1, monkeypatch).part(0, 64)


def test_marks_tell_chunks_apart_and_later_ones_stand_for_lost_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = paged([torch.zeros(BLOCKS, 64) for _ in range(2)], monkeypatch)
    blocks.mark([1, 2])
    blocks.mark([3])
    assert [blocks.marked([at])[0] for at in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert blocks.marked([1, 3, 0])[0] == 2
    blocks.mark([2])
    assert blocks.marked([1, 2])[0] == 3
