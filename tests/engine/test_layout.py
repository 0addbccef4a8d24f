"""An engine's layout: what changes each fact, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from runtimes.transport.layout import MOST_TEXT, Layout

pytestmark = pytest.mark.engine


def of(model: Path | str, *options: str, environ: dict[str, str] | None = None) -> Layout:
    from runtimes.vllm_pd.layout import layout
    from runtimes.vllm_pd.options import parse

    found = layout(parse(["--model", str(model), *options], {}), environ or {})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Layout) == found
    return found


def changed(one: Layout, other: Layout) -> dict[str, object]:
    facts = msgspec.structs.asdict(one)
    return {name: value for name, value in msgspec.structs.asdict(other).items() if value != facts[name]}


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ("--seed 4 --max-model-len 512 --max-num-seqs 3", {}),
        ("--dtype float32", {"dtype": "float32"}),
        ("--revision main", {"revision": "main"}),
        ("--quantization fp8", {"quantization": "fp8"}),
        ("--kv-cache-dtype fp8", {"kv_cache_dtype": "fp8"}),
        ("--block-size 64", {"block_size": 64}),
        ("--tensor-parallel-size 2", {"tensor_parallel": 2}),
        ("--pipeline-parallel-size 2", {"pipeline_parallel": 2}),
        ("--attention-backend CPU_ATTN", {"attention_backend": "CPU_ATTN"}),
        ('--attention-config {"backend":"CPU_ATTN"}', {"attention_backend": "CPU_ATTN"}),
        ('--hf-overrides {"b":1,"a":2}', {"hf_overrides": '{"a": 2, "b": 1}'}),
    ],
)
def test_an_argument_changes_its_fact(tiny_model: Path, options: str, facts: dict[str, object]) -> None:
    assert changed(of(tiny_model), of(tiny_model, *options.split())) == facts


def test_the_order_within_a_block_may_be_forced(tiny_model: Path) -> None:
    forced = of(tiny_model, environ={"VLLM_KV_CACHE_LAYOUT": "HND"})
    assert changed(of(tiny_model), forced) == {"cache_order": "HND"}


def test_models_are_told_apart_by_what_is_in_their_files(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_model, copy)
    before = of(tiny_model)
    assert of(copy) == before
    with (copy / "config.json").open("a") as file:
        file.write(" ")
    assert set(changed(before, of(copy))) == {"config"}
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert set(changed(before, of(copy))) == {"config", "weights"}


def test_what_is_too_long_for_a_fact_is_still_told_apart(tiny_model: Path) -> None:
    revisions = {of(tiny_model, "--revision", "r" * (MOST_TEXT + more)).revision for more in (0, 1, 2)}
    assert len(revisions) == 3
