"""The supervisor with real child processes: restarts, back-off, the end, the lock; and stopping what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kserve_ext.cli.embedded import supervisor as module
from kserve_ext.cli.embedded.backoff import FIRST_S, LONGEST_S, WELL_S, Backoff
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.embedded.parts import Part
from kserve_ext.cli.embedded.stop import stop_cluster
from kserve_ext.cli.embedded.supervisor import Supervisor
from kserve_ext.core.pulse import HUNG_S, Pulse
from kserve_ext.rpc.process import start_ticks

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
DIES = (sys.executable, "-c", "raise SystemExit(3)")


def until(check: Callable[[], object], seconds: float = 60.0) -> None:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    for path in (made.run, made.log):
        path.mkdir()
    made.write_cluster({})
    return made


def start(folder: Folder, monkeypatch: pytest.MonkeyPatch, *argvs: tuple[str, ...]) -> Supervisor:
    """With these commands as its parts; its loop is driven by the test."""
    made = Supervisor(folder)
    for number, argv in enumerate(argvs):
        part = Part(f"part-{number}", "node", argv)
        made.children.append(module.Child(part, made._start(part), time.monotonic()))
    return made


def test_what_dies_is_started_again_and_what_is_stopped_ends(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = start(folder, monkeypatch, SLEEP)
    child = made.children[0]
    first = child.process.pid
    os.kill(first, signal.SIGKILL)

    def again() -> bool:
        made._look(time.monotonic())
        return child.process.pid != first

    until(again)
    assert child.backoff.restarts == 1
    second = child.process
    made._stop_all()
    assert second.poll() == -signal.SIGTERM
    said = capfd.readouterr().out
    assert f"part-0: pid {first} ended (signal 9)" in said
    assert f"part-0: started again as pid {second.pid}" in said


def test_what_keeps_dying_is_started_ever_later(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = start(folder, monkeypatch, DIES)
    child = made.children[0]
    pauses: list[float] = []
    now = time.monotonic()
    for _ in range(5):
        child.process.wait()
        made._look(now)
        pauses.append(child.again_at - now)
        now = child.again_at
        made._look(now)
        assert child.again_at == 0.0
    child.process.wait()
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(FIRST_S)
    assert pauses[-1] > 10 * FIRST_S


def test_backoff_starts_over_when_a_part_was_well() -> None:
    backoff = Backoff()
    for _ in range(20):
        longest = backoff.died(0.0, 0.1)
    assert longest == LONGEST_S
    assert backoff.died(0.0, WELL_S) == FIRST_S


def test_what_hangs_is_ended_and_what_has_not_begun_or_was_not_watched_is_left_alone() -> None:
    pulse = Pulse()
    assert pulse.quiet_s(1, 0.0) == 0.0
    assert pulse.quiet_s(1, 100.0) == 0.0, "a predecessor's file, or not ready yet"
    assert pulse.quiet_s(2, 101.0) == 0.0
    assert pulse.quiet_s(2, 200.0) == 0.0, "ready, but it may not know how to touch the file"
    assert pulse.quiet_s(3, 201.0) == 0.0
    assert pulse.quiet_s(3, 240.0) == 39.0
    pulse.rest(240.0)
    assert pulse.quiet_s(3, 241.0) == 1.0
    assert pulse.quiet_s(4, 242.0) == 0.0


def test_a_part_that_is_stopped_is_killed_and_started_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = start(folder, monkeypatch, SLEEP)
    child = made.children[0]
    first = child.process.pid
    file = folder.run / "part-0.json"
    for beat in range(4):
        file.write_text("{}")
        os.utime(file, (beat, beat))
        made._feel(1000.0 + beat)
    os.kill(first, signal.SIGSTOP)
    for second in range(4, 4 + int(HUNG_S)):
        made._feel(1000.0 + second)
    assert child.process.poll() is None
    made._feel(1000.0 + 4 + HUNG_S)
    child.process.wait()
    made._look(time.monotonic())
    made._look(child.again_at)
    assert child.process.pid != first
    made._stop_all()
    assert f"part-0: pid {first} has not answered for 31 s: killed" in capfd.readouterr().out


def test_a_second_supervisor_of_a_folder_ends_at_once(folder: Folder) -> None:
    argv = [sys.executable, "-m", "kserve_ext.cli.embedded.supervisor", "--data", str(folder.root)]
    folder.write_cluster(
        {"counts": dict.fromkeys(("controller", "objects", "cluster-mgr", "schedule", "dispatch", "node"), 0)}
    )
    first = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        until(lambda: folder.supervisor() == first.pid)
        second = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert "is in use by another supervisor" in second.stdout
    finally:
        first.terminate()
        assert first.wait(60) == 0


def test_what_lives_is_adopted_and_watched(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    orphan = subprocess.Popen(SLEEP)
    until(lambda: start_ticks(orphan.pid))
    (folder.run / "part-0.json").write_text(
        f'{{"id": "part-0", "kind": "node", "pid": {orphan.pid}, "started": {start_ticks(orphan.pid)}}}'
    )
    made = Supervisor(folder)
    made._take_over([Part("part-0", "node", SLEEP), Part("part-1", "node", SLEEP)])
    adopted, started = made.children
    assert adopted.process.pid == orphan.pid
    assert started.process.pid != orphan.pid
    orphan.kill()
    orphan.wait()

    def again() -> bool:
        made._look(time.monotonic())
        return adopted.process.pid != orphan.pid

    until(again)
    made._stop_all()
    assert adopted.process.poll() == started.process.poll() == -signal.SIGTERM
    said = capfd.readouterr().out
    assert "started 1 parts, adopted 1" in said
    assert f"part-0: pid {orphan.pid} ended (it was adopted)" in said


def test_what_was_adopted_is_ended_with_the_others(folder: Folder) -> None:
    orphan = subprocess.Popen(SLEEP)
    until(lambda: start_ticks(orphan.pid))
    (folder.run / "part-0.json").write_text(
        f'{{"id": "part-0", "kind": "node", "pid": {orphan.pid}, "started": {start_ticks(orphan.pid)}}}'
    )
    made = Supervisor(folder)
    made._take_over([Part("part-0", "node", SLEEP)])
    made._stop_all()
    assert orphan.wait(60) == -signal.SIGTERM


def test_down_ends_parts_that_a_killed_supervisor_left_and_nothing_else(folder: Folder) -> None:
    ours = subprocess.Popen(SLEEP)
    other = subprocess.Popen(SLEEP)
    until(lambda: start_ticks(ours.pid))
    (folder.run / "a.json").write_text(
        f'{{"id": "a", "kind": "node", "pid": {ours.pid}, "started": {start_ticks(ours.pid)}}}'
    )
    (folder.run / "b.json").write_text(f'{{"id": "b", "kind": "node", "pid": {other.pid}, "started": 1}}')
    said: list[str] = []
    assert stop_cluster(folder, said.append) == 1
    assert said == ["1 parts without a supervisor"]
    assert ours.wait(60) == -signal.SIGTERM
    assert other.poll() is None
    other.kill()
    other.wait()
    assert stop_cluster(folder, said.append) == 0
