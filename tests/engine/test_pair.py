"""Prefill and decode: the same tokens as one engine, exact accounting, and every failure ends in right tokens."""

from __future__ import annotations

import itertools
import json
import random
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import PD, start_pair
from tests.engine.instances import WAIT_S, Answer, Instance, Nursery, until

pytestmark = pytest.mark.engine

BLOCK = 128
_seen: dict[int, int] = {}


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 260) for _ in range(length)]


def transfer(answer: Answer) -> tuple[str, dict[str, str]]:
    rung, *rest = answer.headers["x-kv-transfer"].split(";")
    return rung, dict(part.split("=") for part in rest)


@pytest.mark.parametrize("length", [5, 63, 64, 127, 128, 129, 255, 256, 257, 700, 1500, 1900])
def test_tokens_equal_one_engines_and_transferred_tokens_are_accounted_for(pd: PD, length: int) -> None:
    tokens = prompt(length, length)
    before = pd.decode.sources()
    got, answer = pd.decode.tokens(tokens, 16)
    after = pd.decode.sources()
    expected, _ = pd.prefill.tokens(tokens, 16)
    assert got == expected
    rung, facts = transfer(answer)
    external = after["external_kv_transfer"] - before.get("external_kv_transfer", 0)
    local = after["local_compute"] - before.get("local_compute", 0)
    if length < 64:
        assert (rung, facts) == ("none", {"reason": "below-threshold"})
        assert (external, local) == (0, length)
        return
    assert rung == pd.rung
    assert external == int(facts["tokens"]) == length
    assert local <= BLOCK
    blocks = -(-length // BLOCK)
    assert int(facts["bytes"]) == blocks * 4 * BLOCK * 2 * 2 * 64 * 4  # layers, tokens, heads, K and V, fp32


def test_layers_leave_within_the_step_that_computes_them(pd: PD) -> None:
    """Of a prompt of one chunk. How soon depends on what else this machine does, what decode makes of it does not."""
    seeds = itertools.count(30_000)

    def overlapped() -> bool:
        tokens = prompt(next(seeds), 500)
        got, answer = pd.decode.tokens(tokens, 8)
        assert got == pd.prefill.tokens(tokens, 8)[0]
        rung, facts = transfer(answer)
        assert (rung, facts["tokens"]) == (pd.rung, "500")
        return float(facts["overlap"]) > 0

    until(overlapped, "a transfer that begins before its prompt is computed")


@pytest.mark.parametrize(
    "more",
    [
        {"kv_transfer_params": {"galaxy_transfer": [], "galaxy_push": []}},
        {"kv_transfer_params": {"galaxy_transfer": 1, "galaxy_push": 1}},
        {"vllm_xargs": {"kv_transfer_params": "galaxy_transfer"}},
    ],
)
def test_what_a_client_says_of_transfers_means_nothing(pd: PD, more: dict[str, Any]) -> None:
    seed = 2100 + len(str(more))
    expected, _ = pd.prefill.tokens(prompt(seed, 300), 8, **more)
    got, answer = pd.decode.tokens(prompt(seed, 300), 8, **more)
    assert got == expected == pd.prefill.tokens(prompt(seed, 300), 8)[0]
    assert transfer(answer)[0] == pd.rung


def test_blocks_that_decode_holds_are_not_sent(pd: PD) -> None:
    shared = prompt(2000, 3 * BLOCK)
    pd.decode.tokens(shared + prompt(2001, 100), 2)
    got, answer = pd.decode.tokens(shared + prompt(2002, 100), 8)
    assert transfer(answer)[1]["tokens"] == "100"
    assert got == pd.prefill.tokens(shared + prompt(2002, 100), 8)[0]
    _, answer = pd.decode.tokens(shared + prompt(2003, 20), 2)
    assert transfer(answer) == ("none", {"reason": "cached"})


def test_the_timeline_tells_the_whole_story(pd: PD) -> None:
    _, answer = pd.decode.tokens(prompt(3000, 500), 4)
    name = answer.headers["x-request-id"]

    def marks() -> list[str]:
        facts = pd.decode.get(f"/galaxy/requests/{name}").json
        return [name for name, _, _ in facts["marks"]]

    until(lambda: "prefill_end" in marks(), "prefill's marks")
    assert set(marks()) >= {
        "received",
        "tokenised",
        "decided",
        "prefill_leased",
        "channel",
        "prefill_start",
        "prefill_end",
        "transfer",
        "first_token",
        "last_token",
    }
    facts = pd.decode.get(f"/galaxy/requests/{name}").json
    assert facts["kv"]["tokens"] == 500
    assert facts["kv"]["rung"] == pd.rung
    assert facts["prefill"]["addr"] == f"127.0.0.1:{pd.prefill.port}"
    at_prefill = pd.prefill.get(f"/galaxy/requests/{name}").json
    assert [name for name, _, _ in at_prefill["marks"]][:2] == ["prefill_received", "prefill_start"]


def test_many_at_once_and_nothing_is_kept(pd: PD) -> None:
    lengths = [80, 128, 300, 640, 1000, 1300, 257, 90]
    prompts = [prompt(4000 + n, length) for n, length in enumerate(lengths)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda tokens: pd.decode.tokens(tokens, 6)[1], prompts))
    assert [transfer(answer)[1]["tokens"] for answer in got] == [str(length) for length in lengths]
    _settled(pd)


def test_a_client_that_goes_in_mid_transfer_frees_both_sides(pd: PD) -> None:
    for seed in range(4):
        body = {"prompt": prompt(5000 + seed, 1800), "max_tokens": 40, "ignore_eos": True}
        reader = threading.Thread(target=lambda body=body: next(pd.decode.stream(body)))
        reader.start()
        reader.join(WAIT_S)
    _settled(pd)
    got, answer = pd.decode.tokens(prompt(5100, 400), 4)
    assert transfer(answer)[1]["tokens"] == "400"
    assert got == pd.prefill.tokens(prompt(5100, 400), 4)[0]


def test_clients_that_hang_up_at_any_moment_harm_nobody(pd: PD) -> None:
    """Also while the engine is looked into, a slot is asked for, blocks are reserved or written."""

    def one(number: int) -> None:
        rng = random.Random(number)
        tokens = prompt(20_000 + number, rng.choice([90, 129, 700, 1200]))
        if number % 2:
            got, _ = pd.decode.tokens(tokens, 4)
            assert number % 8 != 1 or got == pd.prefill.tokens(tokens, 4)[0]
            return
        body = json.dumps({"model": "tiny", "prompt": tokens, "max_tokens": 60, "ignore_eos": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", pd.decode.port)) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            gone.wait(rng.random() * 0.2)

    gone = threading.Event()  # never set: a client's patience
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(120)))
    _settled(pd)


def test_what_only_decode_can_compute_is_not_sent(pd: PD) -> None:
    _, answer = pd.decode.tokens(prompt(6000, 200), 2, n=2, temperature=1)
    assert transfer(answer) == ("none", {"reason": "several-choices"})


def test_decode_alone_says_why(nursery: Nursery) -> None:
    alone = nursery.start("--role", "decode", "--pd-threshold-tokens", "64").ready()
    _, answer = alone.tokens(prompt(7000, 200), 2)
    assert transfer(answer) == ("none", {"reason": "no-prefill"})
    alone.kill()


def test_a_pair_whose_blocks_differ_says_in_what(nursery: Nursery) -> None:
    pd = start_pair(nursery, "--dtype", "bfloat16", "--block-size", "64")
    says = (
        "dtype: 'float32' at prefill, 'bfloat16' at decode; set --dtype equal; "
        "block_size: not set at prefill, 64 at decode; set --block-size equal"
    )
    reasons: dict[str, Answer] = {}

    def asked() -> bool:
        _, answer = pd.decode.tokens(prompt(7050 + len(reasons), 200), 2)
        reasons[transfer(answer)[1]["reason"]] = answer
        return "incompatible" in reasons

    until(asked, "the peer is asked, after its rest if it has one")
    assert set(reasons) <= {"incompatible", "backing-off"}
    name = reasons["incompatible"].headers["x-request-id"]
    marks = pd.decode.get(f"/galaxy/requests/{name}").json["marks"]
    assert [detail for mark, _, detail in marks if mark == "recompute"] == [f"incompatible: {says}"]
    assert pd.decode.log.count(says) == 1
    assert pd.prefill.get("/galaxy/channel").json["layout"]["dtype"] == "float32"
    for instance in (pd.prefill, pd.decode):
        instance.kill()


def test_a_required_transfer_that_is_impossible_is_refused(nursery: Nursery) -> None:
    alone = nursery.start("--role", "decode", "--pd-threshold-tokens", "64", "--kv-transfer-required").ready()
    body = {"model": "tiny", "prompt": prompt(7100, 200), "max_tokens": 2}
    answer = alone.ask("/v1/completions", body)
    assert answer.status == 503
    assert "no-peer" in answer.json["error"]["message"]
    assert alone.ask("/v1/completions", {**body, "prompt": prompt(7100, 20)}).status == 200
    alone.kill()


def test_a_flipped_byte_is_caught_and_recomputed(nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "armed"
    pd = start_pair(nursery, fault={"FAULT": "flip", "FAULT_FILE": str(file)})
    tokens = prompt(8000, 700)
    file.touch()
    before = pd.decode.sources()
    got, answer = pd.decode.tokens(tokens, 12)
    after = pd.decode.sources()
    assert not file.exists()
    rung, facts = transfer(answer)
    assert (rung, facts["reason"]) == ("none", "checksum")
    assert after["local_compute"] - before["local_compute"] == 700
    assert after.get("external_kv_transfer", 0) == before.get("external_kv_transfer", 0)
    assert 'outcome="checksum"' in pd.decode.get("/metrics").body.decode()
    again, answer = pd.decode.tokens(prompt(8001, 700), 12)
    assert transfer(answer)[1]["tokens"] == "700"
    reference = nursery.start().ready()
    assert got == reference.tokens(tokens, 12)[0]
    assert again == reference.tokens(prompt(8001, 700), 12)[0]
    for instance in (reference, pd.prefill, pd.decode):
        instance.kill()


def test_prefill_killed_in_mid_request_and_back_again(nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "armed"
    pd = start_pair(nursery, fault={"FAULT": "stall", "FAULT_FILE": str(file)})
    file.touch()
    tokens = prompt(9000, 1200)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(pd.decode.tokens, tokens, 12)
        until(lambda: _computed(pd), "the prompt's computation")
        pd.prefill.kill(signal.SIGKILL)
        got, answer = asked.result(WAIT_S)
    assert transfer(answer)[1]["reason"] == "channel-closed"
    until(lambda: _reason(pd, 9001) == "unreachable", "the peer is tried again after its rest")
    reference = nursery.start().ready()
    assert got == reference.tokens(tokens, 12)[0]
    for instance in (reference, pd.decode):
        instance.kill()


def test_a_transfer_that_hangs_times_out_and_prefill_frees_its_blocks(
    nursery: Nursery, tmp_path: Path
) -> None:
    file = tmp_path / "armed"
    fault = {"FAULT": "stall", "FAULT_FILE": str(file)}
    pd = start_pair(nursery, "--kv-transfer-seconds", "1", fault=fault)
    file.touch()
    got, answer = pd.decode.tokens(prompt(9500, 600), 8)
    assert transfer(answer)[1]["reason"] == "timeout"
    file.unlink()
    _settled(pd)
    assert got == pd.prefill.tokens(prompt(9500, 600), 8)[0]
    for instance in (pd.prefill, pd.decode):
        instance.kill()


def test_a_stopped_prefill_is_left_alone_until_it_runs_again(nursery: Nursery) -> None:
    pd = start_pair(nursery)
    assert _reason(pd, 9600) == ""
    reference = nursery.start().ready()
    tokens = prompt(9601, 1500)
    pd.prefill.kill(signal.SIGSTOP)
    try:
        got, answer = pd.decode.tokens(tokens, 8)
        assert transfer(answer)[1]["reason"] == "channel-timeout"  # not its deadline's: nobody answered
        assert got == reference.tokens(tokens, 8)[0]
        reasons: list[str] = []

        def tried_again() -> bool:
            reasons.append(_reason(pd, 9610))
            return reasons[-1] == "unreachable"

        until(tried_again, "a trial after a rest")
        until(lambda: _reason(pd, 9610) == "backing-off", "the rest after it")
        assert set(reasons) <= {"backing-off", "unreachable"}
    finally:
        pd.prefill.kill(signal.SIGCONT)
    until(lambda: _reason(pd, 9602) == "", "a transfer")
    _settled(pd)
    for instance in (reference, pd.prefill, pd.decode):
        instance.kill()


def test_term_at_prefill_lets_open_transfers_end(nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "armed"
    pd = start_pair(nursery, fault={"FAULT": "stall", "FAULT_FILE": str(file)})
    file.touch()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(pd.decode.tokens, prompt(9700, 600), 4)
        until(lambda: _computed(pd), "the prompt's computation")
        pd.prefill.kill()
        until(lambda: pd.prefill.status()["phase"] == "draining", "draining")
        file.unlink()
        _, answer = asked.result(WAIT_S)
    assert transfer(answer)[1]["tokens"] == "600"
    assert pd.prefill.exited()["code"] == 0
    pd.decode.kill()
    assert pd.decode.exited()["code"] == 0


def _reason(pd: PD, seed: int) -> str:
    """Why a prompt that nobody has seen was computed by decode; "" if it was not."""
    _seen[seed] = _seen.get(seed, 0) + 1
    _, answer = pd.decode.tokens(prompt(seed + 100_000 * _seen[seed], 300), 2)
    return transfer(answer)[1].get("reason", "")


def _computed(pd: PD) -> bool:
    """Prefill's engine has computed more than the one token of its own start."""
    text = pd.prefill.get("/metrics").body.decode()
    lines = [line for line in text.splitlines() if line.startswith("vllm:prompt_tokens_by_source_total")]
    return any(float(line.rsplit(" ", 1)[1]) > 1 for line in lines)


def _settled(pd: PD) -> None:
    """No request runs, and no block is held, on either side."""
    for instance in (pd.prefill, pd.decode):
        until(lambda instance=instance: _free(instance), "nothing is held")


def _free(instance: Instance) -> bool:
    instance.tokens([3, 4], 1)  # the engine reports its usage with a step
    held: dict[str, float] = {}
    for line in instance.get("/metrics").body.decode().splitlines():
        name, _, rest = line.partition("{")
        if name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            held[name] = held.get(name, 0) + float(rest.rsplit(" ", 1)[1])
    assert len(held) == 3
    return not any(held.values())
