"""V2 bodies: JSON and binary forms say the same; what is wrong is named."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.vllm_pd.tensors import BadTensor, TextRequest, read_request, write_response

texts = st.lists(st.text(max_size=20), max_size=5)


def body(data: Any, **changes: Any) -> bytes:
    tensor = {"name": "t", "datatype": "BYTES", "data": data, **changes}
    return json.dumps({"id": "1", "inputs": [tensor], "parameters": {"max_tokens": 3}}).encode()


@given(texts)
def test_both_forms_are_read_alike(given_texts: list[str]) -> None:
    plain = read_request(body(given_texts, shape=[len(given_texts)]), None)
    raw = b"".join(struct.pack("<I", len(data)) + data for data in (text.encode() for text in given_texts))
    head = body(None, shape=[len(given_texts)], parameters={"binary_data_size": len(raw)})
    assert read_request(head + raw, len(head)) == plain
    assert plain == TextRequest("1", given_texts, {"max_tokens": 3}, False)


@given(texts)
def test_the_binary_answer_can_be_read_back(answers: list[str]) -> None:
    data, head = write_response("m", TextRequest("1", [], {}, True), answers, {})
    assert head is not None
    outputs = json.loads(data[:head])["outputs"][0]
    assert outputs["parameters"]["binary_data_size"] == len(data) - head
    request = json.dumps({"inputs": [{**outputs, "data": None}]}).encode()
    assert read_request(request + data[head:], len(request)).texts == answers


def test_nested_data_is_flattened() -> None:
    assert read_request(body([["a"], ["b"]], shape=[2, 1]), None).texts == ["a", "b"]


@pytest.mark.parametrize(
    ("given_body", "length", "field"),
    [
        (b"{", None, "body"),
        (b"[]", None, "inputs"),
        (b'{"inputs": []}', None, "inputs"),
        (body(["a"], datatype="FP32"), None, "datatype"),
        (body([1], shape=[1]), None, "data"),
        (body(["a"], shape=[3]), None, "shape"),
        (body(None, parameters={"binary_data_size": 5}), None, "binary_data_size"),
        (body(None, parameters={"binary_data_size": 3}) + b"abc", -3, "binary"),
        (body(None, parameters={"binary_data_size": 5}) + b"\x09\0\0\0a", -5, "binary"),
    ],
)
def test_bad_requests_name_the_field(given_body: bytes, length: int | None, field: str) -> None:
    with pytest.raises(BadTensor, match=field):
        read_request(given_body, None if length is None else len(given_body) + length)
