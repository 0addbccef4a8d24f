"""Which services a shaped engine can become: all differences count but those that come with a service."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.standby.shape import FREE, difference, is_free, spoken, unshapeable

ENGINE = {
    "model_config.model": "'/shape'",
    "model_config.max_model_len": "2048",
    "model_config.dtype": "torch.float32",
    "model_config.quantization": "None",
    "model_config.hf_config.hidden_size": "256",
    "model_config.hf_config.eos_token_id": "1",
    "model_config.hf_text_config.hidden_size": "256",
    "cache_config.block_size": "128",
    "cache_config.kv_cache_memory_bytes": "67108864",
    "parallel_config.tensor_parallel_size": "1",
    "load_config.load_format": "'galaxy-none'",
    "instance_id": "'1'",
    "env.OMP_NUM_THREADS": "1",
}
SERVICE = ENGINE | {
    "model_config.model": "'/models/a'",
    "model_config.served_model_name": "'a'",
    "model_config.hf_config.eos_token_id": "[1, 2]",
    "load_config.load_format": "'auto'",
    "instance_id": "'2'",
}


def test_a_service_of_the_shape_may_have_its_own_name_tokens_and_files() -> None:
    assert difference(ENGINE, SERVICE) is None


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"model_config.hf_config.hidden_size": "512"}, "config.json: hidden_size"),
        ({"model_config.hf_config.num_experts": "8"}, "config.json: num_experts"),
        ({"model_config.max_model_len": "4096"}, "--max-model-len"),
        ({"model_config.dtype": "torch.bfloat16"}, "--dtype"),
        ({"cache_config.block_size": "32"}, "--block-size"),
        ({"cache_config.kv_cache_memory_bytes": "1"}, "--kv-cache-memory-bytes"),
        ({"parallel_config.tensor_parallel_size": "2"}, "--tensor-parallel-size"),
        ({"load_config.load_format": "'gguf'"}, "--load-format"),
        ({"env.OMP_NUM_THREADS": "2"}, "OMP_NUM_THREADS"),
        ({"brand_new_config.something": "True"}, "--something"),
    ],
)
def test_the_field_that_differs_is_named(changed: dict[str, str], field: str) -> None:
    found = difference(ENGINE, SERVICE | changed)
    assert found is not None
    assert found.field == field
    assert found.asked == next(iter(changed.values()))


def test_of_several_the_cause_is_named_and_not_what_follows_from_it() -> None:
    changed = {"model_config.hf_config.num_hidden_layers": "2", "cache_config.kv_cache_memory_bytes": "1"}
    found = difference(ENGINE, SERVICE | changed)
    assert found is not None
    assert found.field == "config.json: num_hidden_layers"
    assert found.reason == "the engine has nothing, the service 2"


names = st.sampled_from([*ENGINE, "model_config.seed", "model_config.hf_config.rope", "a.b"])
facts = st.dictionaries(names, st.sampled_from(["1", "2", "None"]))


@given(facts, facts)
def test_no_difference_means_that_all_that_is_not_free_is_equal(
    shaped: dict[str, str], asked: dict[str, str]
) -> None:
    asked = asked | {"load_config.load_format": "'auto'"}
    bound = {name for name in shaped | asked if not is_free(name)}
    alike = all(shaped.get(name) == asked.get(name) for name in bound)
    assert (difference(shaped, asked) is None) == alike
    found = difference(shaped, asked)
    if found is not None:
        assert found.field in {spoken(name) for name in bound}


def test_what_is_free_is_listed_and_nothing_that_shapes_memory_is() -> None:
    assert all(is_free(pattern.replace("*", "x")) for pattern in FREE)
    for name in ("cache_config.num_gpu_blocks", "model_config.seed", "model_config.hf_config.vocab_size"):
        assert not is_free(name)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"model_config.quantization": "'fp8'"}, "--quantization"),
        ({"parallel_config.tensor_parallel_size": "2"}, "--tensor-parallel-size"),
        ({"lora_config": "LoRAConfig()"}, "--lora-config"),
        ({"model_config.multimodal_config": "MultiModalConfig()"}, "--multimodal-config"),
    ],
)
def test_engines_that_weights_can_not_be_put_into_are_not_begun(changed: dict[str, str], field: str) -> None:
    assert unshapeable(ENGINE) is None
    found = unshapeable(ENGINE | changed)
    assert found is not None
    assert found.field == field
