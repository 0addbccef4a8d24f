"""galaxy simulate as people call it: tables, json, traces, plots, and what it says of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kserve_ext.cli.__main__ import main
from kserve_ext.cli.simulate.command import change
from kserve_ext.sim.rows import Row

SHORT = ("--seconds", "20", "--nodes", "6", "--no-claims")


def galaxy(*args: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *args])


def test_a_table_has_a_row_for_each_system_and_says_that_it_is_simulated() -> None:
    result = galaxy(*SHORT, "--systems", "galaxy,ray")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("simulated: 6 nodes")
    assert "\ngalaxy " in result.output
    assert "\nray " in result.output
    assert "p99 scheduling latency" in result.output


@pytest.mark.parametrize(
    ("ours", "said"),
    [(4.0, "equal"), (4.0000001, "equal"), (3.9999999, "equal"), (5.0, "25.0% higher"), (1.0, "75.0% lower")],
)
def test_what_differs_by_less_than_is_shown_is_called_equal(ours: float, said: str) -> None:
    assert change(Row("c", "m", ours, 4.0, "b", "s", "lower", "simulated")) == said


def test_json_is_the_whole_result() -> None:
    document = json.loads(galaxy(*SHORT, "--systems", "galaxy,central", "-o", "json").output)
    ours, central = document["systems"]
    assert (ours["system"], central["system"]) == ("galaxy", "central")
    assert ours["begun"] == ours["requests"] == central["requests"]
    assert sum(second["arrived"] for second in ours["timeline"]) == ours["requests"]
    (row,) = document["claims"]
    assert row["ours"] == ours["p99"]
    assert row["baseline"] == central["p99"]


def test_the_same_arguments_are_the_same_bytes_whatever_hashes_are() -> None:
    def said(hash_seed: str, seed: str) -> bytes:
        argv = [sys.executable, "-m", "kserve_ext.cli", "simulate", *SHORT, "-o", "json", "--seed", seed]
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(argv, env=env, capture_output=True, check=True).stdout

    assert said("1", "3") == said("2", "3") != said("1", "4")


def test_a_trace_is_read_in_its_format_and_multiplied(tmp_path: Path) -> None:
    trace = tmp_path / "burstgpt.csv"
    lines = ["Timestamp,Model,Request tokens,Response tokens,Elapsed time"]
    lines += [f"{k},GPT-4,10,10,0.5" for k in range(8)]
    trace.write_text("\n".join(lines) + "\n")
    args = (
        "--trace",
        str(trace),
        "--format",
        "burstgpt",
        "--systems",
        "galaxy",
        "--nodes",
        "4",
        "--no-claims",
    )
    once = json.loads(galaxy(*args, "-o", "json").output)
    twice = json.loads(galaxy(*args, "--load", "2", "-o", "json").output)
    assert [d["systems"][0]["requests"] for d in (once, twice)] == [8, 16]
    assert "burstgpt.csv (burstgpt) times 2, 16 requests" in twice["conditions"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--systems", "galaxi"), "there is no system galaxi; did you mean galaxy"),
        (("--systems", ","), "name at least one of galaxy"),
        (("--trace", "missing.csv"), "can't read missing.csv"),
        (("--trace", "."), "is a directory"),
        (("--format", "burstgpt"), "--format is of a trace: name it with --trace"),
        (("--trace", "missing.csv", "--format", "burstgpt"), "can't read missing.csv"),
        (("--nodes", "0"), "'--nodes'"),
        (("--load", "0"), "'--load'"),
        (("--load", "1e6"), "its requests are too many"),
        (("--seconds", "0.001"), "there is no request"),
        (("--seconds", "nan"), "Invalid value for '--seconds'"),
        (("--load", "nan"), "Invalid value for '--load'"),
        (("--load", "inf"), "Invalid value for '--load'"),
    ],
)
def test_bad_input_is_said(args: tuple[str, ...], said: str) -> None:
    result = galaxy("--no-claims", *args)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output


def test_what_is_no_trace_is_said_with_its_line(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("a,b\n1,2\n")
    result = galaxy("--trace", str(trace), "--format", "burstgpt")
    assert result.exit_code == 1
    assert "t.csv:1: no column Timestamp" in result.output


def test_plots_are_svg_that_can_be_read(tmp_path: Path) -> None:
    result = galaxy(*SHORT, "--systems", "ray", "--plots", str(tmp_path / "plots"))
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == [
        "instances.svg",
        "latency-p50.svg",
        "latency-p99.9.svg",
        "latency-p99.svg",
        "partitions.svg",
        "waiting.svg",
    ]
    for name in names:
        root = ElementTree.parse(tmp_path / "plots" / name).getroot()
        assert root.findall("{http://www.w3.org/2000/svg}polyline")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("")
    result = galaxy(*SHORT, "--systems", "ray", "--plots", str(tmp_path / "plots" / "x"))
    assert result.exit_code == 1
    assert "can't write plots" in result.output
