"""The picture of one request: lanes, offsets and bars."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.cli.waterfall import WIDTH, Row, bar, lines, rows

T = 1_700_000_000.0


def mark(name: str, at: float, where: str = "dispatch-0", source: str = "dispatch") -> dict[str, Any]:
    return {"name": name, "at": T + at, "detail": "", "where": where, "source": source}


COLD: dict[str, Any] = {
    "id": "r1",
    "revision": "default/tiny-predictor-00001",
    "instance": "i1",
    "outcome": "ok",
    "cold": True,
    "shard": "dispatch-0",
    "instances": [{"instance": "i1", "kv_transfer": "shm;tokens=64"}],
    "marks": [
        mark("arrived", 0.0),
        mark("held", 0.001),
        mark("sent", 1.5),
        mark("first_byte", 1.9),
        mark("earlier", -5.0, "i1", "node"),
        mark("decided", 0.002, "i1", "node"),
        mark("ready", 1.4, "i1", "node"),
        mark("first_token", 1.8, "i1", "instance"),
        mark("strange_mark", 2.0, "i1", "instance"),
    ],
}


def test_each_place_is_a_lane_and_times_count_from_arrival() -> None:
    found = [(r.where, r.name, round(r.begin_ms), round(r.at_ms)) for r in rows(COLD)]
    assert found == [
        ("dispatch-0", "request head read", 0, 0),
        ("dispatch-0", "held: no free slot", 0, 1),
        ("i1", "home decided to start it", 0, 2),
        ("i1", "ready, told to home and shard", 2, 1400),
        ("dispatch-0", "sent to the instance", 1, 1500),
        ("i1", "first token", 1400, 1800),
        ("dispatch-0", "first byte of the answer", 1500, 1900),
        ("i1", "strange mark", 1800, 2000),
    ]


def test_the_picture_says_what_it_is_of() -> None:
    text = "\n".join(lines(COLD))
    assert "request r1  ok  2000 ms" in text
    assert "cold start" in text
    assert "KV transfer at i1: shm;tokens=64" in text


def test_the_pair_is_told_and_why_no_better_method_was_taken() -> None:
    lane = {
        "instance": "i1",
        "kv": {"rung": "tcp", "bytes": 4096, "overlap": 0.75},
        "prefill": {
            "instance": "p1",
            "addr": "a:1",
            "generation": 7,
            "passed": ["rdma: no RDMA device here"],
        },
    }
    other = {"instance": "p1", "kv": {"rung": "none"}, "prefill": {"instance": "x"}}
    text = lines({**COLD, "instances": [lane, other]})
    assert text[2:5] == [
        "KV transfer at i1: rung tcp, bytes 4096, overlap 0.75",
        "pair: i1 – p1, generation 7",
        "not by rdma: no RDMA device here",
    ]
    assert not any("x" in line for line in text[:5])


def test_the_end_of_an_instance_is_told_and_is_no_part_of_the_time() -> None:
    ended = "the process was killed by SIGKILL"
    lane = {"instance": "i1", "ended": ended}
    later = mark("failed", 60.0, "i1", "node")
    document = {**COLD, "outcome": "failed", "instances": [lane], "marks": [*COLD["marks"], later]}
    text = "\n".join(lines(document))
    assert "request r1  failed  2000 ms" in text
    assert f"instance i1 has ended: {ended}" in text
    assert rows({**document, "outcome": ""})[-1].name == "ended by itself", (
        "of one that is under way all is told"
    )


def test_without_marks_of_a_shard_there_is_no_picture() -> None:
    assert rows({"marks": [mark("ready", 1.0, "i1", "node")]}) == []
    assert rows({}) == []


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_bar_is_as_wide_as_the_picture_and_never_empty(begin: float, took: float, rest: float) -> None:
    drawn = bar(Row("w", "n", begin, begin + took, ""), begin + took + rest)
    assert len(drawn) == WIDTH
    assert drawn.strip()
