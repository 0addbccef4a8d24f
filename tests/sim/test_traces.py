"""Readers of public traces: columns, order, errors that say where; and the facts of synthetic bursts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kserve_ext.sim import bursts
from kserve_ext.sim.bursts import Shape
from kserve_ext.sim.traces import MINUTES, READERS, Arrival, TraceError, format_of

MINUTE_COLUMNS = ",".join(str(minute) for minute in range(1, MINUTES + 1))


def written(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_azure_llm_has_seven_digits_of_fraction_and_starts_at_zero(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "t.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16 18:17:05.0000000,3180,8",
    )
    assert list(READERS["azure-llm"](path, 0)) == [
        Arrival(0.0, input_tokens=4808, output_tokens=10),
        Arrival(1.02004, input_tokens=3180, output_tokens=8),
    ]


def test_azure_llm_tells_its_zone_and_a_whole_second_without_a_fraction(tmp_path: Path) -> None:
    """As the week of 2024 does."""
    path = written(
        tmp_path,
        "t.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2024-05-10 00:00:00.009930+00:00,2162,5",
        "2024-05-10 00:00:01+00:00,2399,6",
        "2024-05-10 02:00:02.5+02:00,76,15",
    )
    assert [round(arrival.at, 6) for arrival in READERS["azure-llm"](path, 0)] == [0.0, 0.99007, 2.49007]


def test_burstgpt_counts_from_its_first_request(tmp_path: Path) -> None:
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    path = written(tmp_path, "t.csv", head, "5,ChatGPT,472,18,490,x", "45.5,GPT-4,100,0,100,x")
    assert list(READERS["burstgpt"](path, 0)) == [
        Arrival(0, "ChatGPT", 472, 18),
        Arrival(40.5, "GPT-4", 100, 0),
    ]


def test_mooncake_keeps_the_hashes_of_the_prompts_blocks(tmp_path: Path) -> None:
    line = '{"timestamp": %d, "input_length": 1100, "output_length": 6, "hash_ids": [1, 2, 3]}'
    at = 1_760_000_000_000  # one that was recorded elsewhere counts from 1970
    path = written(tmp_path, "t.jsonl", line % at, line % (at + 277))
    assert list(READERS["mooncake"](path, 0)) == [
        Arrival(0.0, "", 1100, 6, prefix=(1, 2, 3)),
        Arrival(0.277, "", 1100, 6, prefix=(1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("head", "form"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "azure-llm"),
        ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "burstgpt"),
        (f"\ufeffHashOwner,HashApp,HashFunction,Trigger,{MINUTE_COLUMNS}", "azure-functions"),
        ('{"timestamp": 277, "input_length": 1100, "output_length": 6, "hash_ids": [1]}', "mooncake"),
        ('{"timestamp": 277, "input_length": 1100}', ""),
        ("[[1], 2]", ""),
        ("when,what", ""),
        ("", ""),
    ],
)
def test_a_format_is_known_by_the_names_of_its_first_line(tmp_path: Path, head: str, form: str) -> None:
    assert format_of(written(tmp_path, "t", head, "5,x")) == form


def test_azure_functions_spread_a_minutes_count_over_it_by_the_seed(tmp_path: Path) -> None:
    counts = ["0"] * MINUTES
    counts[1], counts[3] = "3", "2"
    other = ["0"] * MINUTES
    other[1] = "1"
    path = written(
        tmp_path,
        "invocations_per_function_md.anon.d01.csv",
        f"HashOwner,HashApp,HashFunction,Trigger,{MINUTE_COLUMNS}",
        f"o,a,f1,http,{','.join(counts)}",
        f"o,a,f2,http,{','.join(other)}",
    )
    written(
        tmp_path,
        "function_durations_percentiles.anon.d01.csv",
        "HashOwner,HashApp,HashFunction,Average",
        "o,a,f1,250",
    )
    found = list(READERS["azure-functions"](path, 7))
    assert [arrival.at for arrival in found] == sorted(arrival.at for arrival in found)
    assert Counter((arrival.key, int(arrival.at // 60)) for arrival in found) == {
        ("f1", 1): 3,
        ("f2", 1): 1,
        ("f1", 3): 2,
    }
    assert {(arrival.key, arrival.seconds) for arrival in found} == {("f1", 0.25), ("f2", 0.0)}
    assert found == list(READERS["azure-functions"](path, 7)) != list(READERS["azure-functions"](path, 8))


@pytest.mark.parametrize(
    ("format_", "lines", "said"),
    [
        (
            "azure-llm",
            ["TIMESTAMP,Tokens", "x,1"],
            "t:1: no column ContextTokens, GeneratedTokens; is it another",
        ),
        ("azure-llm", ["TIMESTAMP,ContextTokens,GeneratedTokens", "soon,1,2"], "t:2: TIMESTAMP is 'soon'"),
        (
            "azure-llm",
            ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03,1.5,2"],
            "t:2: ContextTokens is '1.5', not a whole number",
        ),
        ("azure-llm", ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16"], "t:2: the row ends early"),
        (
            "burstgpt",
            ["Timestamp,Model,Request tokens,Response tokens", "-1,m,1,2"],
            "t:2: Timestamp is '-1', not a number from 0 up",
        ),
        ("mooncake", ["{}"], "t:1: expected timestamp"),
        (
            "mooncake",
            ['{"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": []}'],
            "t:1: expected whole numbers from 0 up",
        ),
    ],
)
def test_what_cannot_be_read_is_said_with_file_line_and_column(
    tmp_path: Path, format_: str, lines: list[str], said: str
) -> None:
    path = written(tmp_path, "t", *lines)
    with pytest.raises(TraceError) as caught:
        list(READERS[format_](path, 0))
    assert said in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_bursts_are_the_load_that_users_describe(seed: int) -> None:
    found = bursts.facts(list(bursts.arrivals(Shape(seed=seed))))
    assert found.peak_to_trough > 200
    assert found.doublings >= 10  # in two hours
    assert found.without_rise >= 0.9
    assert found.functions_in_peak >= 40


def test_the_same_shape_is_the_same_trace_and_its_rate_is_what_was_meant() -> None:
    shape = Shape(seconds=1200, bursts=3, peak=40, seed=3)
    trace = list(bursts.arrivals(shape))
    assert trace == list(bursts.arrivals(shape))
    assert trace == sorted(trace, key=lambda arrival: arrival.at)
    meant = sum(bursts.rate(shape, second + 0.5) for second in range(1200))
    assert len(trace) == pytest.approx(meant, rel=0.15)
