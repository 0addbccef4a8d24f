"""The fields that the protocol changes are changed, all others stay; what one engine must compute alone is known."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.two_leg.bodies import (
    LONG,
    Asked,
    Setting,
    for_decode,
    for_prefill,
    for_release,
    handed,
    read,
    why_alone,
    without_params,
)

PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_host": "h", "remote_num_tokens": 9}

texts = st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
others = st.dictionaries(
    texts.filter(lambda name: name not in ("n", "best_of", "echo", "prompt", "kv_transfer_params")),
    values,
    max_size=4,
)
streams = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "max_tokens": st.integers(1, 99),
        "max_completion_tokens": st.integers(1, 99),
        "min_tokens": st.integers(0, 9),
        "stream_options": st.just({"include_usage": True}),
        "n": st.just(1),
    },
)


@given(others, streams, st.sampled_from(["", " ", "\n\t "]), st.sampled_from([None, 2]), st.booleans())
def test_each_leg_differs_from_the_request_in_the_fields_of_the_protocol_only(
    more: dict[str, Any], stream: dict[str, Any], space: str, indent: int | None, escaped: bool
) -> None:
    fields = {**more, "prompt": "some text, é and \U0001f600", **stream}
    body = (json.dumps(fields, indent=indent, ensure_ascii=escaped) + space).encode()
    asked = read(body, chat=False)
    assert asked.obstacle == ""
    decode = for_decode(body, PARAMS)
    assert decode.startswith(body.rstrip()[:-1]), "the client's own bytes"
    assert json.loads(decode) == {**fields, "kv_transfer_params": PARAMS}
    prefill = json.loads(for_prefill(asked))
    assert prefill.pop("kv_transfer_params")["do_remote_decode"] is True
    assert (prefill.pop("max_tokens"), prefill.pop("stream")) == (1, False)
    assert prefill.pop("max_completion_tokens", 1) == 1
    changed = {"max_tokens", "max_completion_tokens", "stream", "stream_options", "min_tokens"}
    assert prefill == {name: value for name, value in fields.items() if name not in changed}


@pytest.mark.parametrize(
    ("fields", "obstacle"),
    [
        ({"prompt": "x", "n": 2}, "several-choices"),
        ({"prompt": "x", "best_of": 3}, "several-choices"),
        ({"prompt": "x", "use_beam_search": True}, "several-choices"),
        ({"prompt": "x", "prompt_logprobs": 0}, "prompt-logprobs"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "prompt-logprobs"),
        ({"prompt": "x", "echo": True}, ""),
        ({"prompt": ["a", "b"]}, "several-prompts"),
        ({"prompt": [[1], [2]]}, "several-prompts"),
        ({"prompt": "x", "prompt_embeds": "AAAA"}, "not-plain-tokens"),
        ({"prompt": None}, "unreadable"),
        ({}, "unreadable"),
    ],
)
def test_what_one_engine_has_to_compute_alone(fields: dict[str, Any], obstacle: str) -> None:
    assert read(json.dumps(fields).encode(), chat=False).obstacle == obstacle


@given(others, st.sampled_from(["utf-8", "utf-16", "utf-32-le"]), st.booleans(), st.booleans())
def test_what_a_client_says_of_transfers_is_dropped_and_nothing_else(
    more: dict[str, Any], encoding: str, hidden: bool, said: bool
) -> None:
    fields = {**more, "prompt": "é"}
    own = {"kv_transfer_params": PARAMS} if said else {}
    text = json.dumps({**own, **fields})
    if hidden:
        text = text.replace('"kv_transfer_params"', '"kv_transfer\\u005fparams"')
    body = text.encode(encoding)
    found = without_params(body)
    assert json.loads(found) == fields
    assert said or found == body, "the client's own bytes"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b"\xff\xfe", '{"prompt":"x"}'.encode("utf-16"), b'{"a":' * 100_000]
)
def test_what_cannot_be_read_goes_to_decode_as_it_is(body: bytes) -> None:
    assert read(body, chat=False).obstacle == read(body, chat=True).obstacle == "unreadable"
    assert without_params(body) == body


def test_lengths_are_exact_in_tokens_and_estimated_in_characters() -> None:
    def length(fields: dict[str, Any], chat: bool = False) -> int:
        return read(json.dumps(fields).encode(), chat, 4.0).tokens

    assert length({"prompt": list(range(300))}) == length({"prompt": [list(range(300))]}) == 300
    assert length({"prompt": "x" * 400}) == length({"prompt": ["x" * 400]}) == 100
    assert read(b'{"prompt":"' + b"x" * 400 + b'"}', False, 2.0).tokens == 200
    parts = [{"type": "text", "text": "x" * 40}, {"type": "text", "text": "y" * 40}]
    assert (
        length(
            {"messages": [{"role": "user", "content": parts}, {"role": "user", "content": "z" * 40}]}, True
        )
        == 30
    )
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    assert length({"messages": [{"role": "user", "content": image}]}, True) == LONG // 4
    assert length({"messages": [{"role": "assistant", "content": None}]}, True) == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"{", "prefill-unreadable"),
        (b"[]", "nothing-handed"),
        (b'{"kv_transfer_params":null}', "nothing-handed"),
        (b'{"kv_transfer_params":{"do_remote_prefill":false}}', "nothing-handed"),
        (b'{"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[[]]}}', "nothing-handed"),
        (json.dumps({"kv_transfer_params": PARAMS}).encode(), ""),
    ],
)
def test_what_prefill_hands_over(answer: bytes, reason: str) -> None:
    got = handed(answer)
    assert got.reason == reason
    assert (got.params, got.tokens) == ((None, 0) if reason else (PARAMS, 9))


@pytest.mark.parametrize(
    ("setting", "tokens", "obstacle", "reason"),
    [
        ("auto", 64, "", ""),
        ("auto", 63, "", "below-threshold"),
        ("always", 2, "", ""),
        ("always", 1, "", "below-threshold"),
        ("never", 5000, "", "disabled"),
        ("always", 5000, "several-choices", "several-choices"),
    ],
)
def test_who_computes_a_prompt(setting: Setting, tokens: int, obstacle: str, reason: str) -> None:
    assert why_alone(setting, 64, Asked({}, tokens, obstacle)) == reason


def test_a_release_names_the_kv_and_no_model_that_anybody_has() -> None:
    fields = json.loads(for_release(PARAMS))
    assert fields["kv_transfer_params"] == PARAMS
    assert "release" in fields["model"]
