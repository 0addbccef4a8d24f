"""Profiles of a process that runs: read by Go's pprof, refused while another is taken, gone when switched off."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from kserve_ext.telemetry import profiles, profiling
from kserve_ext.telemetry.profiling import Profiling
from kserve_ext.wire.pprof import Profile, encode
from tests.support.dataplane import run


def burn() -> int:
    return sum(range(20_000))


def sampled(work: Callable[[], object]) -> Profile:
    """Of what the main thread does until there is something to see."""
    sampler = profiles.Sampler()
    done = threading.Event()
    found: list[Profile] = []
    other = threading.Thread(target=lambda: found.append(sampler.sample(60, done.wait)))
    other.start()
    try:
        while not sampler.samples >= 5:
            work()
    finally:
        done.set()
        other.join()
        sampler.close()
    return found[0]


def test_cpu_is_where_it_was_spent() -> None:
    profile = sampled(burn)
    by_function: dict[str, int] = {}
    for sample in profile.samples:
        for function in {place.function for place in sample.stack}:
            by_function[function] = by_function.get(function, 0) + sample.values[1]
    total = sum(sample.values[1] for sample in profile.samples)
    assert by_function["burn"] > total / 2
    assert by_function["sampled"] == total


def test_heap_is_what_was_allocated_meanwhile() -> None:
    kept: list[bytearray] = []

    def wait(_: float) -> bool:
        kept.append(bytearray(1_000_000))
        return False

    profile = profiles.heap(0, wait)
    largest = max(profile.samples, key=lambda sample: sample.values[1])
    assert largest.values[1] >= 1_000_000
    assert largest.stack[0].function == "kept.append(bytearray(1_000_000))"
    assert largest.stack[0].file == __file__


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go's pprof")
def test_gos_pprof_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "cpu.pb.gz"
    file.write_bytes(gzip.compress(encode(sampled(burn))))
    top = subprocess.run(
        ["go", "tool", "pprof", "-top", file], capture_output=True, text=True, check=True
    ).stdout
    assert "Type: cpu" in top
    assert any(line.endswith(" burn") for line in top.splitlines())


def test_every_path_while_it_is_switched_on() -> None:
    async def scenario() -> None:
        profiling = Profiling("127.0.0.1", 0)
        assert profiling.port == 0
        profiling.enable(True)
        profiling.enable(True)
        base = f"http://127.0.0.1:{profiling.port}/debug/pprof"
        async with aiohttp.ClientSession() as session:

            async def get(path: str) -> tuple[int, bytes]:
                async with session.get(base + path) as answer:
                    return answer.status, await answer.read()

            assert b"goroutine" in (await get("/"))[1]
            assert (await get("/mutex"))[0] == 404
            assert (await get("/profile?seconds=soon"))[0] == 400
            assert (await get("/profile?seconds=100000"))[0] == 400
            for path in ("/profile?seconds=0", "/heap?seconds=0", "/goroutine"):
                status, body = await get(path)
                assert status == 200
                assert gzip.decompress(body)
            assert b"every_path_while" in (await get("/goroutine?debug=1"))[1]
            assert b"builtins.dict" in (await get("/heap?debug=1"))[1]
            assert b"python" in (await get("/cmdline"))[1]

            long = asyncio.ensure_future(get("/profile?seconds=300"))
            while (await get("/goroutine"))[0] == 200:  # until the long one has begun
                pass
            profiling.enable(False)  # ends it
            assert (await long)[0] == 200
            assert profiling.port == 0
            with pytest.raises(aiohttp.ClientConnectorError):
                await get("/")

    run(scenario())


def test_a_port_that_is_taken_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        first = Profiling("127.0.0.1", 0)
        first.enable(True)
        second = Profiling("127.0.0.1", first.port)
        second.enable(True)
        assert second.port == 0
        second.close()
        first.close()

    run(scenario())
    assert "PROFILING_PORT" in caplog.text


def test_who_switches_it_off_waits_for_no_long_look_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    serve = profiling._Server.serve_forever

    def noted(server: profiling._Server, poll_interval: float = 0.5) -> None:
        looks.append(poll_interval)
        serve(server, poll_interval)

    monkeypatch.setattr(profiling._Server, "serve_forever", noted)

    async def test() -> None:
        made = Profiling("127.0.0.1", 0)
        made.enable(True)
        made.enable(False)
        (look_s,) = looks
        assert look_s <= 0.05, "the loop stands still for so long"

    run(test())
