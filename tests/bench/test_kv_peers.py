"""What bench-kv-peers makes of its samples, and of what ucx_perftest prints."""

from __future__ import annotations

import pytest

from bench.kv_peers import figures, rows

TABLE = """
|     Test     | # iterations | 50.0%ile | average | overall |  average |  overall |  average  |  overall  |
+--------------+--------------+----------+---------+---------+----------+----------+-----------+-----------+
[thread 0]               900      0.160   701.914   687.529     1500.97     1450.26         555         672
                        2000      0.160   801.914   787.529     1600.97     1000.00         555         672
"""


def test_the_whole_run_counts_and_its_mebibytes_are_made_megabytes() -> None:
    assert figures(TABLE) == (1048.576, 787.529)
    with pytest.raises(SystemExit, match="says nothing"):
        figures("no connection")


def test_each_rung_stands_beside_every_peer_that_was_measured() -> None:
    samples = {
        f"{who} tcp {unit}": [1.0, 4.0, 2.0]
        for who in ("ours", "nixl", "mooncake")
        for unit in ("MB/s", "s/GiB", "ms")
    }
    samples |= {f"{who} memory {unit}": [3.0] for who in ("ours", "nixl") for unit in ("MB/s", "s/GiB", "ms")}
    samples |= {f"{who} {way} MB/s": [4.0] for who in ("ours over nixl", "ucx") for way in ("tcp", "memory")}
    samples |= {"ours tcp us": [20.0], "ucx tcp us": [10.0]}
    made = rows(samples, 3, "quiet")
    told = {(row["metric"], row["peer_name"].split()[0]): (row["ours"], row["peer"]) for row in made}
    assert told["TCP on loopback, rung tcp, bandwidth", "NIXL"] == (2.0, 2.0)
    assert told["TCP on loopback, rung tcp, bandwidth", "ucx_perftest"] == (2.0, 4.0)
    assert told["memory of one host, rung nixl, bandwidth", "NIXL"] == (4.0, 3.0)
    assert ("memory of one host, rung shm, bandwidth", "Mooncake") not in told
    assert all("quiet" in row["conditions"] and "150%" in row["conditions"] for row in made)
