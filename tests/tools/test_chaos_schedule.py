"""Chaos schedules: values made from a seed, printed and read back; what histories say of spans of time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos import faults
from tests.chaos.__main__ import main
from tests.chaos.digest import length, minus, union
from tests.chaos.run import raised

PARTS = ["controller-0", "dispatch-0", "dispatch-1", "node-0"]
spans = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)).map(lambda t: (min(t), max(t))), max_size=8)


@given(st.integers(0, 1 << 31), st.floats(25, 400), st.booleans())
def test_a_schedule_is_its_seeds_alone_and_comes_back_from_its_text(
    seed: int, seconds: float, cut: bool
) -> None:
    made = faults.make(seed, seconds, PARTS, cut=cut)
    assert made == faults.make(seed, seconds, PARTS, cut=cut) == faults.read(made.text())
    assert made.faults
    assert all(f.at + f.seconds <= seconds for f in made.faults), "what a run began is over when it ends"
    assert cut or not any(f.kind == "cut" for f in made.faults)


LOG = """\
2026-11-26 03:32:37,126 E dispatch-1 asyncio: Exception in callback <Frames._tick>
Traceback (most recent call last):
  File "uvloop/cbhandles.pyx", line 257, in uvloop.loop.TimerHandle._run
    transport.write(out)
    ^^^^^^^^^^^^^^^
RuntimeError: unable to write
2026-11-26 03:32:41,507 W dispatch-1 activator_replacement.homes: homes don't act
Traceback (most recent call last):
  File "torn
"""


def test_the_errors_that_a_part_has_logged_are_found() -> None:
    assert raised(LOG) == ["RuntimeError: unable to write", ""]


@given(spans, spans)
def test_what_is_left_of_a_span_lies_in_no_hole(
    some: list[tuple[float, float]], holes: list[tuple[float, float]]
) -> None:
    for span in some:
        left = minus(span, holes)
        assert all(span[0] <= a <= b <= span[1] for a, b in left)
        inside = [(max(a, span[0]), min(b, span[1])) for a, b in holes if a < span[1] and b > span[0]]
        assert abs(length(left) + length(union(inside)) - length([span])) < 1e-6


@pytest.mark.parametrize(
    "args",
    [
        ("--seconds", "0"),
        ("--seconds", "nan"),
        ("--script", "nope"),
        ("--script", "over-commit", "--bug", "nope"),
        ("--check", "/nope"),
        ("--schedule", "/nope"),
        ("--cluster", "nope"),
    ],
)
def test_what_can_not_be_run_is_refused_by_name(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.chaos.__main__.Run", lambda *a: pytest.fail("it runs"))
    with pytest.raises(SystemExit) as refused:
        main(list(args))
    assert refused.value.code == 2
    assert f"argument {args[-2]}" in capsys.readouterr().err


def test_where_there_is_no_history_nothing_is_found_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "has no history" in said.err
    assert not said.out
