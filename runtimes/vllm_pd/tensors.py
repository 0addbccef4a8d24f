"""KServe's V2 inference bodies for text: BYTES tensors as JSON or in the binary extension. Pure.

Follows the Open Inference Protocol's REST form: row-major data, flat or nested; with the header
Inference-Header-Content-Length the raw bytes of binary tensors follow the JSON, each element prefixed by its
length in four little-endian bytes.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple


class BadTensor(ValueError):
    """The request body is not a V2 request for text; the message names the field."""


class TextRequest(NamedTuple):
    id: str
    texts: list[str]
    parameters: dict[str, Any]
    binary: bool  # the answer's tensor is wanted in binary


def read_request(body: bytes, header_length: int | None) -> TextRequest:
    try:
        head = json.loads(body if header_length is None else body[:header_length])
    except ValueError as error:
        raise BadTensor(f"body: not JSON: {error}") from error
    inputs = head.get("inputs") if isinstance(head, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadTensor("inputs: exactly one tensor with the texts is expected")
    tensor = inputs[0]
    if tensor.get("datatype") != "BYTES":
        raise BadTensor(f"inputs[0].datatype: BYTES is expected, not {tensor.get('datatype')}")
    own = tensor.get("parameters") or {}
    size = own.get("binary_data_size")
    if size is None:
        texts = _flatten(tensor.get("data"))
    elif header_length is None or len(body) - header_length < size:
        raise BadTensor("inputs[0].parameters.binary_data_size: more than the body holds")
    else:
        texts = _split(body[header_length : header_length + size])
    count = 1
    for length in tensor.get("shape") or [len(texts)]:
        count *= length
    if count != len(texts):
        raise BadTensor(f"inputs[0].shape: {tensor.get('shape')} does not hold {len(texts)} elements")
    parameters = dict(head.get("parameters") or {})
    binary = bool(parameters.pop("binary_data_output", False))
    for output in head.get("outputs") or []:
        binary = bool((output.get("parameters") or {}).get("binary_data", binary))
    parameters |= {k: v for k, v in own.items() if k not in ("binary_data_size", "content_type")}
    return TextRequest(str(head.get("id") or ""), texts, parameters, binary)


def write_response(
    model: str, request: TextRequest, texts: list[str], parameters: dict[str, Any]
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part if raw bytes follow it."""
    tensor: dict[str, Any] = {"name": "text_output", "datatype": "BYTES", "shape": [len(texts)]}
    answer = {"model_name": model, "id": request.id, "parameters": parameters, "outputs": [tensor]}
    if not request.binary:
        tensor["data"] = texts
        return json.dumps(answer).encode(), None
    raw = b"".join(struct.pack("<I", len(data)) + data for data in (t.encode() for t in texts))
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(answer).encode()
    return head + raw, len(head)


def _flatten(data: Any) -> list[str]:
    if isinstance(data, str):
        return [data]
    if not isinstance(data, list):
        raise BadTensor("inputs[0].data: a list of strings is expected")
    return [text for item in data for text in _flatten(item)]


def _split(raw: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise BadTensor("inputs[0]: the binary data ends inside a length")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise BadTensor("inputs[0]: the binary data ends inside an element")
        texts.append(raw[at : at + length].decode("utf-8", "replace"))
        at += length
    return texts
