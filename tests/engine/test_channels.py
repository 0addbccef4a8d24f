"""What two real engines tell of the channel between them, and how often it changes when one of them starts again."""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest

from tests.engine.conftest import PD, start_pair
from tests.engine.instances import Instance, Nursery, until

pytestmark = pytest.mark.engine


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 260) for _ in range(length)]


def pair(instance: Instance) -> dict[str, Any]:
    pairs: list[dict[str, Any]] = instance.get("/galaxy/channels").json["pairs"]
    return next((pair for pair in pairs if pair["state"] == "up"), {})


def series(instance: Instance, name: str) -> dict[str, float]:
    """Labels -> value."""
    lines = instance.get("/metrics").body.decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith(name) and line[len(name)] in "{ "]
    return {labels.removeprefix(name): float(value) for labels, value in found}


def test_both_sides_tell_of_the_pair_and_count_what_went_over_it(pd: PD) -> None:
    before = [pair(side) for side in (pd.decode, pd.prefill)]
    _, answer = pd.decode.tokens(prompt(50_000, 1900), 2)
    rung, *words = answer.headers["x-kv-transfer"].split(";")
    facts = dict(word.split("=") for word in words)
    assert rung == pd.rung
    assert 0.0 <= float(facts["overlap"]) <= 1.0
    for side, was in zip((pd.decode, pd.prefill), before, strict=True):
        until(lambda side=side, was=was: pair(side)["transfers"] == was.get("transfers", 0) + 1, "counted")
        now = pair(side)
        assert now["bytes"] - was.get("bytes", 0) == int(facts["bytes"])
        assert [each["rung"] for each in now["rungs"]] == [pd.rung]
        sent = series(side, "galaxy_kv_transfer_bytes_total")
        of_pair = f'{{peer="{now["peer"]}",rung="{pd.rung}"}}'
        assert sent[of_pair] == now["bytes"]
        assert series(side, "galaxy_kv_channels")['{state="up"}'] == 1
    assert pair(pd.decode)["generation"] == pd.prefill.get("/galaxy/channel").json["generation"]
    said = pd.decode.status()["kv"]
    assert (said["role"], said["peers"], said["pairs"][0]["state"]) == ("decode", 1, "up")
    assert series(pd.decode, "galaxy_kv_channel_dial_seconds_count")[""] >= 1
    assert series(pd.decode, "galaxy_kv_transfer_overlap_count")[""] >= 1


def test_a_decode_that_dies_leaves_nothing_at_prefill_and_its_successor_is_served(nursery: Nursery) -> None:
    pd = start_pair(nursery)
    until(lambda: pair(pd.prefill), "connected before any request")
    pd.decode.kill(signal.SIGKILL)
    until(lambda: not pd.prefill.get("/galaxy/channels").json["pairs"], "prefill has noticed")
    env = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{pd.prefill.port}"}
    again = nursery.start("--role", "decode", "--pd-threshold-tokens", "64", env=env).ready()
    until(lambda: pair(again), "connected")
    got, answer = again.tokens(prompt(50_100, 700), 8)
    assert answer.headers["x-kv-transfer"].startswith("shm;")
    assert got == pd.prefill.tokens(prompt(50_100, 700), 8)[0]
    for instance in (again, pd.prefill):
        instance.kill()


def test_a_prefill_that_dies_is_dialled_again_without_any_request(nursery: Nursery) -> None:
    pd = start_pair(nursery)
    until(lambda: pair(pd.decode), "connected before any request")
    old, port = pair(pd.decode)["generation"], pd.prefill.port
    pd.prefill.kill(signal.SIGKILL)
    until(lambda: not pair(pd.decode), "decode has noticed")
    again = nursery.start("--role", "prefill", "--port", str(port)).ready()
    until(lambda: pair(pd.decode).get("generation", old) != old, "another generation")
    _, answer = pd.decode.tokens(prompt(50_200, 700), 2)
    assert answer.headers["x-kv-transfer"].startswith("shm;")
    for instance in (again, pd.decode):
        instance.kill()
