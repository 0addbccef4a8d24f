"""The shaped engine: services of one shape, one after the other, answer as plainly started ones do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.instances import ROOT, WAIT_S, Instance, Nursery, ask_zygote, until
from tests.support.processes import lives

pytestmark = pytest.mark.engine

PROMPTS = [[7, 8, 9], list(range(5, 300)), [300] * 150]
STARTS_S = 400.0  # imports, engine and rehearsal, on a busy machine
OPTIONS = ("--max-model-len", "2048", "--dtype", "float32")


class Shaped:
    """The process, and what is asked of it."""

    def __init__(self, folder: Path, config: Path, *options: str) -> None:
        self.folder, self.path = folder, folder / "shaped.sock"
        self.count = 0
        self.log = (folder / "shaped.log").open("wb")
        command = [sys.executable, "-m", "runtimes.vllm_pd.shaped", "--socket", str(self.path), "--"]
        command += ["--model", str(config), *OPTIONS, *options]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.log)
        until(
            lambda: self.state() in ("ready", "failed") or self.process.poll() is not None, "shaped", STARTS_S
        )
        assert self.state() == "ready", self.said()[-3000:]

    def said(self) -> str:
        return (self.folder / "shaped.log").read_text()

    def state(self) -> str:
        try:
            return str(ask_zygote(self.path, {"ping": True})["state"])
        except OSError:
            return ""

    def asked(self, model: Path, *options: str, env: dict[str, str] | None = None) -> dict[str, Any]:
        self.count += 1
        self.instance = Instance(self.folder / f"i{self.count}", self.process.pid)
        self.instance.folder.mkdir()
        argv = [
            "python",
            "-m",
            "runtimes.vllm_pd",
            "--model",
            str(model),
            "--port",
            "0",
            "--host",
            "127.0.0.1",
        ]
        argv += ["--served-model-name", "tiny", *OPTIONS, *options]
        given = {"GALAXY_INSTANCE_DIR": str(self.instance.folder), **(env or {})}
        return ask_zygote(self.path, {"argv": argv, "env": given})

    def start(self, model: Path, *options: str) -> Instance:
        answer = self.asked(model, *options)
        assert answer == {"pid": self.process.pid}, answer
        until(lambda: self.state() in ("serving", "failed", ""), "serving")
        assert self.state() == "serving", self.said()[-3000:]
        return self.instance

    def free(self) -> None:
        assert ask_zygote(self.path, {"free": True, "drain_s": 5})["state"] == "ready", self.said()[-3000:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(WAIT_S)
        self.log.close()


def other_weights(model: Path, folder: Path, *, leave_out: str = "", eos: int | None = None) -> Path:
    """The same shape; what its tokens are has nothing to do with the first one's."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, folder)
    draw = np.random.default_rng(11)
    weights = load_file(model / "model.safetensors")
    mixed = {
        name: w if w.ndim == 1 else draw.permutation(w.reshape(-1)).reshape(w.shape)
        for name, w in weights.items()
        if not leave_out or leave_out not in name
    }
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    if eos is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}))
    return folder


@pytest.fixture(scope="module")
def config_only(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("shape")
    shutil.copy(tiny_model / "config.json", folder)
    return folder


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory, config_only: Path) -> Iterator[Shaped]:
    made = Shaped(tmp_path_factory.mktemp("shaped"), config_only)
    yield made
    made.close()


def tokens(instance: Instance) -> list[list[int]]:
    return [instance.tokens(prompt, 16)[0] for prompt in PROMPTS]


def test_two_models_one_after_the_other_answer_as_plain_ones(
    shaped: Shaped, nursery: Nursery, tiny_model: Path, tmp_path: Path
) -> None:
    second = other_weights(tiny_model, tmp_path / "second")
    expected = {}
    for model in (tiny_model, second):
        plain = nursery.start(model=model).ready()
        expected[model] = tokens(plain)
        plain.kill()
        plain.exited()
    assert expected[tiny_model] != expected[second]
    for model in (tiny_model, second, tiny_model):
        instance = shaped.start(model)
        assert tokens(instance) == expected[model]
        hits = instance.sources().get("local_cache_hit", 0.0)
        assert hits == 0, "a prompt was found in another service's cache"
        assert instance.ask("/v1/models").json["data"][0]["root"] == str(model)
        shaped.free()


def test_the_same_folder_may_hold_another_model_next_time(
    shaped: Shaped, tiny_model: Path, tmp_path: Path
) -> None:
    """As volumes do that are always mounted at one path."""
    place = tmp_path / "models"
    place.symlink_to(tiny_model)
    first = tokens(shaped.start(place))
    shaped.free()
    place.unlink()
    place.symlink_to(other_weights(tiny_model, tmp_path / "second", eos=first[0][3]))
    instance = shaped.start(place)
    assert tokens(instance) != first
    body = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 4, "stop": None, "temperature": 0}
    assert instance.ask("/v1/completions", body).status == 200
    shaped.free()


def test_another_shape_is_refused_with_the_field_and_nothing_has_happened(
    shaped: Shaped, tiny_model: Path, tmp_path: Path
) -> None:
    smaller = tmp_path / "smaller"
    shutil.copytree(tiny_model, smaller)
    config = json.loads((smaller / "config.json").read_text())
    (smaller / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert shaped.asked(smaller)["field"] == "config.json: num_hidden_layers"
    assert shaped.asked(tiny_model, "--max-num-seqs", "3")["field"] == "--max-num-seqs"
    assert shaped.asked(tiny_model, "--role", "decode")["field"] == "--role"
    assert shaped.asked(tiny_model, env={"OMP_NUM_THREADS": "7"})["field"] == "OMP_NUM_THREADS"
    assert shaped.asked(tmp_path / "nothing")["field"] == "--model"
    assert shaped.state() == "ready"
    assert shaped.start(tiny_model).tokens([5, 6], 2)
    assert shaped.asked(tiny_model)["error"] == "this standby is serving"
    shaped.free()


@pytest.mark.parametrize("lacking", ["layers.2.self_attn.k_proj", "layers.1.input_layernorm", "lm_head"])
def test_weights_that_are_not_there_are_named(
    config_only: Path, tiny_model: Path, tmp_path: Path, lacking: str
) -> None:
    folder = tmp_path / "process"
    folder.mkdir()
    shaped = Shaped(folder, config_only)
    try:
        shaped.asked(other_weights(tiny_model, tmp_path / "torn", leave_out=lacking))
        assert shaped.process.wait(WAIT_S) == 2
        layer = lacking.replace("k_proj", "qkv_proj")
        assert layer in shaped.said()
        assert "lacks the weights of" in shaped.instance.status()["error"]["error"]
    finally:
        shaped.close()


def test_a_zygote_of_a_standby_pod_hands_over_its_shaped_engine(
    tmp_path: Path, config_only: Path, tiny_model: Path
) -> None:
    """And forks one for a service of another shape, and keeps the next engine once nothing of either is left."""
    path = tmp_path / "zygote.sock"
    shape = f"--model {config_only} {' '.join(OPTIONS)}"
    env = {**os.environ, "GALAXY_SLOT_LEVEL": "S1", "GALAXY_SLOT_SHAPE": shape}
    command = [sys.executable, "-m", "runtimes.vllm_pd.zygote", "--socket", str(path), "--name", "slot"]
    with (tmp_path / "log").open("wb") as log:
        zygote = subprocess.Popen(command, cwd=ROOT, env=env, stderr=log, start_new_session=True)
    served: list[Instance] = []

    def kept() -> int:
        answer = ask_zygote(path, {"ping": True})
        return int(answer["kept"]) if answer["ready"] else 0

    def start(*options: str) -> Instance:
        instance = Instance(tmp_path / f"i{len(served)}", 0)
        instance.folder.mkdir()
        argv = ["--model", str(tiny_model), "--port", "0", "--served-model-name", "tiny", *OPTIONS, *options]
        request = {"argv": argv, "env": {"GALAXY_INSTANCE_DIR": str(instance.folder)}, "stdio": "inherit"}
        instance.pid = ask_zygote(path, {**request, "instance_dir": str(instance.folder)})["pid"]
        served.append(instance)
        return instance.ready()

    def end(instance: Instance) -> None:
        instance.kill()
        assert instance.exited()["code"] == 0

    try:
        until(path.exists, "socket")
        first = until(kept, "a shaped engine", STARTS_S)
        shaped = start()
        assert shaped.pid == first
        assert [e["name"] for e in shaped.status()["events"]].count("weights_into_shape") == 1
        expected = shaped.tokens([5, 6, 7], 8)[0]
        end(shaped)
        second = until(kept, "the next shaped engine", STARTS_S)
        other = start("--max-num-seqs", "3")
        assert other.pid not in (first, second)
        assert other.tokens([5, 6, 7], 8)[0] == expected
        end(other)
        assert until(kept, "a shaped engine again", STARTS_S) not in (first, second)
    finally:
        for instance in served:
            if instance.exit_facts() is None:
                instance.kill(signal.SIGKILL)
        left = ask_zygote(path, {"ping": True})["kept"]
        zygote.kill()  # it can't tell anybody
        zygote.wait(WAIT_S)
        if isinstance(left, int) and left:
            until(lambda: not lives(left), "the shaped engine's end")


def test_prefill_and_decode_take_services_one_after_the_other(
    tmp_path: Path, nursery: Nursery, config_only: Path, tiny_model: Path
) -> None:
    """Each time with channels of their own: who they are and what their blocks are made of has changed."""
    sides = []
    for role in ("prefill", "decode"):
        (tmp_path / role).mkdir()
        sides.append(Shaped(tmp_path / role, config_only, "--role", role))
    prefill, decode = sides
    second = other_weights(tiny_model, tmp_path / "second")
    prompt = list(range(5, 300))
    key = {"GALAXY_CLUSTER_KEY_FILE": str(tmp_path / "key")}
    (tmp_path / "key").write_bytes(b"k" * 32)
    try:
        for model in (tiny_model, second):
            plain = nursery.start(model=model).ready()
            expected = plain.tokens(prompt, 8)[0]
            plain.kill()
            plain.exited()
            answer = prefill.asked(model, "--role", "prefill", env=key)
            assert "pid" in answer, answer
            until(lambda: prefill.state() in ("serving", "failed", ""), "prefill")
            peers = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{prefill.instance.port}", **key}
            options = ("--role", "decode", "--pd-threshold-tokens", "64", "--kv-transfer", "shm")
            answer = decode.asked(model, *options, env=peers)
            assert "pid" in answer, answer
            until(lambda: decode.state() in ("serving", "failed", ""), "decode")
            got, answer_ = decode.instance.tokens(prompt, 8)
            assert got == expected
            assert answer_.headers["x-kv-transfer"].startswith("shm;"), answer_.headers
            decode.free()
            prefill.free()
    finally:
        for side in sides:
            side.close()


def test_tied_embeddings_and_biases_are_the_services_own(
    tmp_path: Path, nursery: Nursery, tiny_model: Path
) -> None:
    """The output layer has packed the input's weights for itself, and biases are never dropped."""
    models = [qwen(tiny_model, tmp_path / f"qwen{seed}", seed) for seed in (1, 2)]
    expected = []
    for model in models:
        plain = nursery.start(model=model).ready()
        expected.append(tokens(plain))
        plain.kill()
        plain.exited()
    assert expected[0] != expected[1]
    (tmp_path / "process").mkdir()
    shaped = Shaped(tmp_path / "process", models[0])
    try:
        for model, wanted in zip(models, expected, strict=True):
            assert tokens(shaped.start(model)) == wanted
            shaped.free()
    finally:
        shaped.close()


def qwen(tiny: Path, folder: Path, seed: int) -> Path:
    """A Qwen2 of the tiny model's measures."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("head_dim", "attention_bias", "mlp_bias"):
        del config[name]
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(seed)
    weights = {n: w for n, w in load_file(tiny / "model.safetensors").items() if n != "lm_head.weight"}
    made = {
        n: w if w.ndim == 1 else draw.permutation(w.reshape(-1)).reshape(w.shape) for n, w in weights.items()
    }
    for name, w in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            made[name.replace("weight", "bias")] = np.asarray(
                draw.standard_normal(w.shape[0]), dtype=np.float32
            )
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_on_a_cpu_sleep_is_refused_with_the_reason(shaped: Shaped, tiny_model: Path) -> None:
    instance = shaped.start(tiny_model)
    answer = ask_zygote(instance.folder / "control.sock", {"sleep": True})
    assert answer["field"] == "sleep"
    assert "can't sleep" in answer["error"]
    assert instance.tokens([5, 6], 2)
    shaped.free()
