"""The bodies of the two legs: what vLLM's kv_transfer_params protocol changes in a request, and nothing else.

The prefill leg asks for one token, unstreamed, and for its KV to be kept ({do_remote_decode: true}). Its answer
says where the KV lies; those parameters go on to decode in the client's own bytes, spliced in before the last
brace. A release asks for a model that no engine has: vLLM's decode side then gives the KV back with an empty pull,
and computes nothing. What a client says of transfers itself is dropped: it would move other people's KV. Lengths are
estimates, for this reads JSON and knows no tokenizer. Never decides where a leg goes.

In vLLM: tests/v1/kv_connector/nixl_integration/toy_proxy_server.py, entrypoints/generate/base/serving.py:
_with_kv_transfer_rejection_cleanup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

Setting = Literal["auto", "always", "never"]

PARAMS: Final = "kv_transfer_params"
CHARS_PER_TOKEN: Final = 4.0
#: What is said of a prompt that holds more than text: longer than any threshold.
LONG: Final = 1 << 20

_PREFILL: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
#: Of no use, or refused, where one unstreamed token is wanted.
_NOT_FOR_PREFILL: Final = ("stream_options", "min_tokens", "min_completion_tokens")
_NOBODYS_MODEL: Final = "galaxy-release-of-kv"


class Asked(NamedTuple):
    """What a client asks for, as far as the legs depend on it."""

    fields: dict[str, Any]
    tokens: int  # of the prompt, about
    obstacle: str  # why one engine has to compute it alone; "" if two can


class Handed(NamedTuple):
    """What prefill's answer hands over. No `params`: `reason` says why in a word."""

    params: dict[str, Any] | None
    tokens: int = 0
    reason: str = ""


def without_params(body: bytes) -> bytes:
    """A client's own bytes, but for its kv_transfer_params. Read as engines read it, whatever its encoding."""
    if PARAMS.encode() not in body and b"\\u" not in body and b"\0" not in body:
        return body
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return body  # nor can an engine
    if not isinstance(fields, dict) or PARAMS not in fields:
        return body
    del fields[PARAMS]
    return json.dumps(fields, separators=(",", ":")).encode()


def read(body: bytes, chat: bool, chars_per_token: float = CHARS_PER_TOKEN) -> Asked:
    try:
        fields = json.loads(body.decode())
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return Asked({}, 0, "unreadable")  # decode says what is wrong with it
    tokens, obstacle = _chat_length(fields, chars_per_token) if chat else _length(fields, chars_per_token)
    return Asked(fields, tokens, _obstacle(fields) or obstacle)


def why_alone(setting: Setting, threshold: float, asked: Asked) -> str:
    """Why decode computes this prompt itself; "": prefill is to be asked."""
    if asked.obstacle:
        return asked.obstacle
    if setting == "never":
        return "disabled"
    # One token is always computed by decode: a prompt of one has nothing to hand over.
    return "below-threshold" if asked.tokens < max(2.0, 0.0 if setting == "always" else threshold) else ""


def for_prefill(asked: Asked) -> bytes:
    fields = {name: value for name, value in asked.fields.items() if name not in _NOT_FOR_PREFILL}
    fields.update({"max_tokens": 1, "stream": False, PARAMS: _PREFILL})
    if "max_completion_tokens" in fields:
        fields["max_completion_tokens"] = 1
    return json.dumps(fields, separators=(",", ":")).encode()


def handed(answer: bytes) -> Handed:
    try:
        fields = json.loads(answer)
    except (ValueError, RecursionError):
        return Handed(None, 0, "prefill-unreadable")
    params = fields.get(PARAMS) if isinstance(fields, dict) else None
    if not isinstance(params, dict) or not params.get("do_remote_prefill"):
        return Handed(None, 0, "nothing-handed")
    blocks = params.get("remote_block_ids")
    if isinstance(blocks, list) and not any(blocks):
        return Handed(None, 0, "nothing-handed")  # vLLM's decode side takes this for its own mistake
    tokens = params.get("remote_num_tokens")
    return Handed(params, tokens if isinstance(tokens, int) else 0)


def for_decode(body: bytes, params: Mapping[str, Any]) -> bytes:
    """`body` is one that was read without an obstacle."""
    head = body.rstrip(b" \t\r\n")[:-1]
    return b"%b,%b:%b}" % (head, json.dumps(PARAMS).encode(), json.dumps(params).encode())


def for_release(params: Mapping[str, Any]) -> bytes:
    return json.dumps({"model": _NOBODYS_MODEL, "prompt": [0], "max_tokens": 1, PARAMS: params}).encode()


def _obstacle(fields: dict[str, Any]) -> str:
    """KV is handed over once, to one request with one prompt."""
    if any(fields.get(name) not in (None, 1) for name in ("n", "best_of")) or fields.get("use_beam_search"):
        return "several-choices"
    if fields.get("prompt_logprobs") is not None or (
        fields.get("echo") and fields.get("logprobs") is not None
    ):
        return "prompt-logprobs"
    if fields.get("prompt_embeds") is not None:
        return "not-plain-tokens"
    return ""


def _length(fields: dict[str, Any], chars_per_token: float) -> tuple[int, str]:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return int(len(prompt) / chars_per_token), ""
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return len(prompt), ""
    return 0, "several-prompts" if isinstance(prompt, list) and prompt else "unreadable"


def _chat_length(fields: dict[str, Any], chars_per_token: float) -> tuple[int, str]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        return 0, "unreadable"
    characters = sum(_characters(message) for message in messages)
    if fields.get("tools"):
        characters += len(json.dumps(fields["tools"]))
    return int(characters / chars_per_token), ""


def _characters(message: object) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return sum(len(text) if isinstance(text, str) else LONG for text in texts)
