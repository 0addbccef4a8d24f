"""Steps: skipped when done, continued after an interruption, one set-up at a time."""

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tools.setup import steps
from tools.setup.steps import SetupError, Step


def make(file: Path, ran: list[str], fails: bool = False) -> Step:
    def work() -> None:
        ran.append(file.name)
        if fails:
            raise SetupError("no room")
        file.touch()

    return Step(file.name, file.exists, work, (file.parent,))


def test_nothing_to_do_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").touch()
    ran: list[str] = []
    steps.run([make(tmp_path / "one", ran)], tmp_path / "lock")
    assert ran == []
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "lock").exists()


def test_an_interrupted_set_up_goes_on_where_it_was_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    names = [tmp_path / name for name in ("one", "two", "three")]
    with pytest.raises(SetupError):
        steps.run(
            [make(names[0], ran), make(names[1], ran, fails=True), make(names[2], ran)], tmp_path / "lock"
        )
    steps.run([make(name, ran) for name in names], tmp_path / "lock")
    assert ran == ["one", "two", "two", "three"]
    assert "[2/3] two: done in" in capsys.readouterr().err


def hold(lock: Path, result: Path, holding: Event, enough: Event) -> None:
    with steps.only_one(lock):
        holding.set()
        enough.wait()
        result.touch()


def test_a_second_set_up_waits_and_finds_the_work_done(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holding, enough = context.Event(), context.Event()
    result = tmp_path / "result"
    first = context.Process(target=hold, args=(tmp_path / "lock", result, holding, enough))
    first.start()
    holding.wait()
    ran: list[str] = []

    def done() -> bool:
        """Not yet when first asked, which lets the other set-up go on; asked again under the lock, it is."""
        there = result.exists()
        enough.set()
        return there

    steps.run([Step("one", done, lambda: ran.append("one"))], tmp_path / "lock")
    first.join()
    assert ran == []


def test_sizes_are_summed_below_a_folder_that_may_not_exist(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/one").write_bytes(b"12345")
    (tmp_path / "two").write_bytes(b"123")
    assert steps.size_bytes(tmp_path) == 8
    assert steps.size_bytes(tmp_path / "absent") == 0
