"""The measurements of bench/kv_ttft.py: a JSON line per request, rungs interleaved; runs where its links are."""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.kv_ttft import Sample
from tests.engine.instances import Instance, Nursery, until
from tools.setup.layout import Layout

SPARE = 256  # positions behind the longest prompt
#: In chunks, and whether KV leaves behind a chunk or layer by layer while it is computed.
MODES = {
    "overlapped": (True, "steps"),
    "serial": (False, "steps"),
    "layered": (False, "layers"),
    "both": (True, "layers"),
}
SECONDS = "600"
FAR, NEAR = "rxe1", "rxe2"
FAR_ADDRESS = "198.51.100.1"


class OnVerbs(Nursery):
    def _zygote(self, path: Path, runtime: str) -> subprocess.Popen[bytes]:
        return super()._zygote(path, "tests.rdma.runtime")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kv_ttft_pairs", description=__doc__)
    parser.add_argument("--rungs", nargs="+", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--chunk", type=int, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--verbs", action="store_true")
    args = parser.parse_args()
    most = max(args.lengths)
    with tempfile.TemporaryDirectory() as folder:
        model = with_positions(Path(folder) / "tiny", most + SPARE, args.layers)
        nursery = (OnVerbs if args.verbs else Nursery)(Path(folder), model)
        try:
            for mode, (chunks, sends_by) in MODES.items():
                chunk = args.chunk if chunks else most
                pairs = start(nursery, args.rungs, chunk, sends_by, most + SPARE, args.verbs)
                for turn in range(args.rounds + 1):  # the first round is a warm-up
                    for tokens in args.lengths:
                        for rung, decode in pairs.items():
                            found = ask(decode, rung, mode, tokens, seed=1000 * turn + tokens)
                            if turn:
                                print(json.dumps(found), flush=True)
                for instance in nursery.instances:
                    if instance.exit_facts() is None:
                        instance.kill(9)
                        instance.exited()
        finally:
            nursery.close()
    return 0


def with_positions(folder: Path, positions: int, layers: int) -> Path:
    """The tiny model; its positions are rotary, so their number is only a word in its configuration.

    More layers than it has are its own again.
    """
    shutil.copytree(Layout.of_user().tiny_model, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    has = config["num_hidden_layers"]
    path.write_text(json.dumps(config | {"max_position_embeddings": positions, "num_hidden_layers": layers}))
    if layers > has:
        from safetensors.numpy import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        for name in [name for name in weights if name.startswith("model.layers.")]:
            head, number, rest = name.split(".", 3)[1:]
            for again in range(int(number) + has, layers, has):
                weights[f"model.{head}.{again}.{rest}"] = weights[name]
        save_file(weights, folder / "model.safetensors")
    return folder


def start(
    nursery: Nursery, rungs: list[str], chunk: int, sends_by: str, positions: int, verbs: bool
) -> dict[str, Instance]:
    """One prefill, and a decode a rung."""
    options = ["--max-model-len", str(positions), "--no-enable-prefix-caching"]
    options += ["--kv-transfer-seconds", SECONDS, "--hung-seconds", SECONDS]
    prefill = nursery.start(
        *options,
        "--role",
        "prefill",
        "--max-num-batched-tokens",
        str(max(chunk, 64)),
        "--kv-sends-by",
        sends_by,
        *(("--kv-host", FAR_ADDRESS) if verbs else ()),
        env={"GALAXY_RDMA_DEVICES": FAR},
    ).ready()
    env = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{prefill.port}", "GALAXY_RDMA_DEVICES": NEAR}
    made = {
        rung: nursery.start(
            *options,
            "--role",
            "decode",
            "--pd",
            "always",
            "--pd-threshold-tokens",
            "1",
            "--kv-transfer",
            rung,
            env=env,
        )
        for rung in rungs
    }
    return {rung: instance.ready() for rung, instance in made.items()}


def ask(decode: Instance, rung: str, mode: str, tokens: int, seed: int) -> Sample:
    rng = random.Random(seed)
    prompt = [rng.randrange(3, 260) for _ in range(tokens)]
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": 2,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", decode.port, timeout=float(SECONDS))
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    while not answer.readline().startswith(b"data: {"):
        pass
    first = time.monotonic() - began
    answer.read()
    name = answer.headers["x-request-id"]
    connection.close()

    def marks() -> dict[str, float]:
        facts = decode.get(f"/galaxy/requests/{name}").json
        return {mark: at for mark, at, _ in facts.get("marks", ())}

    until(lambda: {"prefill_end", "transfer"} <= set(marks()), f"a transfer of {name}: {marks()}", 30)
    kv = decode.get(f"/galaxy/requests/{name}").json["kv"]
    exposed = max(0.0, marks()["transfer"] - marks()["prefill_end"])
    return Sample(rung, mode, tokens, kv["bytes"], first * 1000, kv["ms"], exposed * 1000)


if __name__ == "__main__":
    sys.exit(main())
