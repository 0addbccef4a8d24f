"""What bench-kv-ttft makes of its samples: shares beside TCP's, and modelled rows that say so."""

from __future__ import annotations

import json
from pathlib import Path

from bench import kv_model, kv_ttft
from bench.kv_ttft import Sample


def test_a_share_is_what_the_transfer_adds_behind_prefill_and_is_compared_with_tcp() -> None:
    samples = [
        Sample("tcp", "serial", 2048, 8 << 20, 100.0, 30.0, exposed) for exposed in (20.0, 25.0, 30.0)
    ] + [Sample("rdma", "overlapped", 2048, 8 << 20, 80.0, 60.0, 2.0)]
    rows = {row["metric"]: row for row in kv_ttft.measured(samples, 3, 512, verbs=True)}
    assert rows["share of time to first token, 2048 tokens, tcp serial"]["ours"] == 25.0
    row = rows["share of time to first token, 2048 tokens, rdma overlapped"]
    assert (row["ours"], row["peer"], row["better"]) == (2.5, 25.0, "lower")
    assert row["conditions"].startswith("measured; soft-RoCE")
    assert "chunks of 512" in row["conditions"]


def test_modelled_rows_are_labelled_and_stand_on_the_measured_stages(tmp_path: Path) -> None:
    results = tmp_path / "kv_gpu.jsonl"
    rows = [("staged through the host, 4 MiB slots, one way", 40.0), ("staged ..., both ways", 90.0)]
    results.write_text("\n".join(json.dumps({"metric": metric, "ours": ours}) for metric, ours in rows))
    path = kv_ttft.stages(results)
    assert (path.down, path.up) == (40.0 * kv_model.GB, 40.0 * kv_model.GB)
    made = kv_ttft.modelled(path)
    assert all(row["conditions"].startswith("modelled") for row in made)
    serial = [row for row in made if row["metric"].startswith("share, serial")]
    assert [round(row["ours"]) for row in serial] == [4, 7]
