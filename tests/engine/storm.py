"""Requests through a pair in which everything fails at times: no token may be wrong, no block unlike what was sent.

`python -m tests.engine.storm --requests 10000`: half of them one at a time, half of them eight at a time; beside
the faults that faulty/storm.py draws, clients hang up, prefill is stopped for a while, and killed and started again.
In the first half every token must be that of one engine that was alone (fp32); in the second half the blocks are
compared all the same, and tokens that differ are counted: batches differ in rounding.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kserve_ext.rpc.ports import free_port
from tests.engine.instances import Instance, Nursery
from tools.setup.layout import Layout

PROMPTS = 150
TOKENS = 6
OPTIONS = ("--block-size", "32", "--max-model-len", "1024", "--no-enable-prefix-caching")
LONGEST = 700
Env = Mapping[str, str]


def prompt(number: int) -> list[int]:
    rng = random.Random(number)
    return [rng.randrange(3, 260) for _ in range(rng.choice([64, 65, 100, 129, 256, 400, LONGEST]))]


@dataclass
class Outcome:
    requests: int = 0
    rungs: Counter[str] = field(default_factory=Counter)  # what carried the KV, or why nothing did
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # one at a time
    different: list[str] = field(default_factory=list)  # in mixed batches
    blocks: int = 0  # compared
    unequal: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, object]:
        return {
            "requests": self.requests,
            "carried by": dict(self.rungs.most_common()),
            "faults": dict(self.faults.most_common()),
            "wrong, one at a time": self.wrong,
            "different, in mixed batches": self.different,
            "blocks compared": self.blocks,
            "blocks unequal": self.unequal,
        }


class Pair:
    """Both engines in the storm, and one that is not."""

    def __init__(self, nursery: Nursery, rung: str, seed: int, env: tuple[Env, Env]) -> None:
        self._nursery, self._seed, self._env = nursery, seed, env[0]
        self._port = free_port()
        self.alone = nursery.start(*OPTIONS)
        self.prefills = [self._prefill()]
        peers = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{self._port}"}
        given = {"FAULT": "storm-decode", "STORM": str(seed), **peers, **env[1]}
        words = ("--role", "decode", "--pd-threshold-tokens", "64", "--pd", "always", "--kv-transfer", rung)
        self.decode = nursery.start(*OPTIONS, *words, "--kv-transfer-seconds", "1", env=given)
        for instance in (self.alone, self.prefills[0], self.decode):
            instance.ready()

    def _prefill(self) -> Instance:
        seed = self._seed + 1 + len(getattr(self, "prefills", ()))
        env = {"FAULT": "storm-prefill", "STORM": str(seed), **self._env}
        words = ("--role", "prefill", "--max-num-batched-tokens", "256", "--port", str(self._port))
        return self._nursery.start(*OPTIONS, *words, env=env)

    def kill_prefill(self) -> None:
        self.prefills[-1].kill(signal.SIGKILL)
        self.prefills[-1].exited()
        self.prefills.append(self._prefill())

    def stop_prefill(self, seconds: float) -> None:
        self.prefills[-1].kill(signal.SIGSTOP)
        time.sleep(seconds)  # this is the fault
        self.prefills[-1].kill(signal.SIGCONT)

    def hang_up(self, number: int) -> None:
        """A client that goes when it pleases."""
        facts = {"model": "tiny", "prompt": prompt(number), "max_tokens": 50, "ignore_eos": True}
        body = json.dumps(facts).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", self.decode.port)) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            connection.settimeout(random.Random(number).random() * 0.05)
            try:
                connection.recv(1)
            except TimeoutError:
                return


def run(
    nursery: Nursery,
    requests: int,
    rung: str = "auto",
    seed: int = 1,
    env: tuple[Env, Env] = ({}, {}),
) -> Outcome:
    """`env`: more environment for prefill, and for decode."""
    pair = Pair(nursery, rung, seed, env)
    outcome = Outcome()
    expected = [pair.alone.tokens(prompt(number), TOKENS)[0] for number in range(PROMPTS)]
    rng = random.Random(seed)

    def ask(number: int, unlike: list[str]) -> None:
        got, answer = pair.decode.tokens(prompt(number), TOKENS)
        said = answer.headers["x-kv-transfer"]
        rung, _, rest = said.partition(";")
        outcome.rungs[rung if rung != "none" else f"none: {rest.partition(';')[0]}"] += 1
        if got != expected[number]:
            unlike.append(
                f"{answer.headers['x-request-id']}, prompt {number} ({said}): {got}, not {expected[number]}"
            )

    for turn in range(requests // 2):
        ask(rng.randrange(PROMPTS), outcome.wrong)
        _disturb(pair, rng, outcome)
        if sys.stdout.isatty() and turn % 100 == 0:
            print(turn, file=sys.stderr)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(0, requests - requests // 2, 40):
            asked = [pool.submit(ask, rng.randrange(PROMPTS), outcome.different) for _ in range(40)]
            _disturb(pair, rng, outcome, often=40)
            for each in asked:
                each.result()
    outcome.requests = requests // 2 + -(-(requests - requests // 2) // 40) * 40
    _compare(pair, outcome)
    return outcome


def _disturb(pair: Pair, rng: random.Random, outcome: Outcome, often: int = 1) -> None:
    faults: dict[str, tuple[float, Callable[[], None]]] = {
        "client hung up": (0.01, lambda: pair.hang_up(rng.randrange(PROMPTS))),
        "prefill stopped": (0.0005, lambda: pair.stop_prefill(0.3)),
        "prefill killed": (0.0005, pair.kill_prefill),
    }
    for name, (chance, happen) in faults.items():
        if rng.random() < chance * often:
            outcome.faults[name] += 1
            happen()


def _compare(pair: Pair, outcome: Outcome) -> None:
    """Every block of every transfer that was taken for whole."""
    sent: dict[tuple[str, ...], str] = {}
    for prefill in pair.prefills:
        for line in _lines(prefill.folder / "digests"):
            *where, digest = line.split()
            sent[tuple(where)] = digest
        outcome.faults.update(_lines(prefill.folder / "faults"))
    outcome.faults.update(_lines(pair.decode.folder / "faults"))
    for line in _lines(pair.decode.folder / "digests"):
        *where, digest = line.split()
        outcome.blocks += 1
        if sent.get(tuple(where)) != digest:
            outcome.unequal.append(f"{line}: sent was {sent.get(tuple(where))}")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.storm", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rung", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        nursery = Nursery(Path(folder), Layout.of_user().tiny_model)
        try:
            outcome = run(nursery, args.requests, args.rung, args.seed)
        finally:
            nursery.close()
    print(json.dumps(outcome.facts(), indent=1))
    return 1 if outcome.wrong or outcome.unequal or not outcome.blocks else 0


if __name__ == "__main__":
    sys.exit(main())
