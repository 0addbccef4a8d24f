"""Streams cut off behind any event and gone on with: the rest is what the first instance would have sent."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.engine.conftest import PD
from tests.engine.instances import WAIT_S, Instance, Nursery
from tests.engine.test_pair import prompt

pytestmark = pytest.mark.engine

MARK = b": galaxy "
COUNT = 24


class Stream(NamedTuple):
    created: bytes
    events: list[bytes]
    marks: list[bytes]


def ask(instance: Instance, path: str, body: bytes, field: str, name: str) -> Stream:
    """The stream with its marks; `field`: what Dispatch would send."""
    connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=WAIT_S)
    headers = {"content-type": "application/json", "x-request-id": name}
    connection.request("POST", path, body, {**headers, **({"X-Galaxy-Continuation": field} if field else {})})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, text
    blocks = [block + b"\n\n" for block in text.split(b"\n\n")[:-1]]
    events = [block for block in blocks if not block.startswith(MARK)]
    marks = [block[len(MARK) :].strip() for block in blocks if block.startswith(MARK)]
    connection.close()
    return Stream((answer.headers["X-Galaxy-Continuation"] or "").encode(), events, marks)


def resume(instance: Instance, path: str, body: bytes, cut: Stream, name: str) -> Stream:
    """`cut`: what a client has."""
    record = b"\n".join([cut.created, *cut.marks])
    return ask(instance, path, body + record, f"resume={len(body)}", name)


def behind(stream: Stream, count: int) -> Stream:
    return Stream(stream.created, stream.events[:count], stream.marks[:count])


class Said(NamedTuple):
    """A stream, or a part of one, whatever its events are: vLLM joins outputs that nobody has fetched yet."""

    heads: set[tuple[Any, ...]]
    text: str
    roles: int
    tokens: list[Any]
    logprobs: list[Any]
    offsets: list[int]
    ends: list[tuple[Any, Any]]
    usage: Any
    last: bytes


def said(events: list[bytes]) -> Said:
    out = Said(set(), "", 0, [], [], [], [], None, events[-1])
    for event in events[:-1]:
        assert event.startswith(b"data: {"), event
        facts = json.loads(event[6:])
        out.heads.add((facts["id"], facts["created"], facts["model"]))
        out = out._replace(usage=facts.get("usage") or out.usage)
        for choice in facts["choices"]:
            delta = choice.get("delta") or {}
            out = out._replace(text=out.text + (choice.get("text") or delta.get("content") or ""))
            for call in delta.get("tool_calls") or []:
                function = call["function"]
                out = out._replace(
                    text=out.text + (function.get("name") or "") + function.get("arguments", "")
                )
            out = out._replace(roles=out.roles + ("role" in delta))
            out.tokens.extend(choice.get("token_ids") or [])
            logprobs = choice.get("logprobs") or {}
            out.offsets.extend(logprobs.get("text_offset") or [])
            out.logprobs.extend(
                zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=True)
            )
            out.logprobs.extend((one["token"], one["logprob"]) for one in logprobs.get("content") or [])
            if choice["finish_reason"]:
                out.ends.append((choice["finish_reason"], choice.get("stop_reason")))
    return out


def same(got: list[bytes], expected: list[bytes]) -> None:
    one, other = said(got), said(expected)
    assert one._replace(logprobs=[]) == other._replace(logprobs=[])
    assert [token for token, _ in one.logprobs] == [token for token, _ in other.logprobs]
    assert [p for _, p in one.logprobs] == pytest.approx([p for _, p in other.logprobs], abs=1e-3)


TEXT = {"prompt": prompt(1, 150)}
CHAT = {"messages": [{"role": "user", "content": "tell me of rivers"}]}
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 12}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("/v1/completions", TEXT),
    "stop string": ("/v1/completions", {**TEXT, "stop": ["STOP", "never comes"]}),
    "logprobs": ("/v1/completions", {**TEXT, "logprobs": 2, **USAGE}),
    "echo": ("/v1/completions", {**TEXT, "prompt": "once upon", "echo": True}),
    "penalties": (
        "/v1/completions",
        {**TEXT, "allowed_token_ids": list(range(40, 46)), "frequency_penalty": 0.7, "presence_penalty": 0.9},
    ),
    "min tokens": (
        "/v1/completions",
        {**TEXT, "min_tokens": 20, "ignore_eos": False, "return_token_ids": True},
    ),
    "schema": ("/v1/completions", {**TEXT, "structured_outputs": {"json": SCHEMA}, "ignore_eos": False}),
    "multi-byte": (
        "/v1/completions",
        {**TEXT, "structured_outputs": {"choice": ["川は海へ流れる"]}, "max_tokens": 60, "ignore_eos": False},
    ),
    "chat": ("/v1/chat/completions", CHAT),
    "tool call": (
        "/v1/chat/completions",
        {**CHAT, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
    ),
    "chat with all": (
        "/v1/chat/completions",
        {**CHAT, "logprobs": True, "top_logprobs": 2, "stop": ["STOP"], "return_token_ids": True, **USAGE},
    ),
}


@pytest.fixture(scope="module")
def other(nursery: Nursery) -> Iterator[Instance]:
    instance = nursery.start("--enable-auto-tool-choice", "--tool-call-parser", "hermes").ready()
    yield instance
    instance.kill()


def request(case: str, **more: Any) -> tuple[str, bytes]:
    path, facts = CASES[case]
    body = {"model": "tiny", "stream": True, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True}
    return path, json.dumps({**body, **facts, **more}).encode()


@pytest.mark.parametrize("case", CASES)
def test_the_rest_of_a_stream_cut_behind_any_event(unified: Instance, other: Instance, case: str) -> None:
    path, body = request(case)
    if "stop" in CASES[case][1]:  # one that spans the seam somewhere: the end of what the model says
        text = said(ask(unified, path, body, "", "s").events).text
        path, body = request(case, stop=["never comes", text[-9:-3]])
    name = f"cut-{case.replace(' ', '-')}"
    first = other if "tools" in CASES[case][1] else unified
    whole = ask(first, path, body, "marks", name)
    assert whole.events[-1] == b"data: [DONE]\n\n"
    assert whole.marks[-1] == b"done"
    assert len(whole.events) == len(whole.marks)
    assert ask(first, path, body, "", name).marks == []
    assert len(said(whole.events).heads) == 1
    for count in range(len(whole.events)):
        rest = resume(other, path, body, behind(whole, count), name)
        assert rest.created == whole.created
        same(rest.events, whole.events[count:])
        # An instance that goes on with what went on: its record is one.
        if count and len(rest.events) > 3:
            twice = behind(whole, count)
            twice.events.extend(rest.events[:2])
            twice.marks.extend(rest.marks[:2])
            same(resume(first, path, body, twice, name).events, rest.events[2:])


def test_what_the_client_has_may_be_in_the_prefix_cache(unified: Instance) -> None:
    """More of it than the prompt: vLLM knows no other new request of which that is true."""
    path, body = request("text", prompt=prompt(6, 100), max_tokens=220, return_token_ids=True)
    whole = ask(unified, path, body, "marks", "long")
    count = next(n for n in range(220) if len(said([*whole.events[:n], b""]).tokens) > 180)
    before = hits(unified)
    rest = resume(unified, path, body, behind(whole, count), "long")
    same(rest.events, whole.events[count:])
    assert hits(unified) == before + 256


def hits(instance: Instance) -> float:
    text = instance.get("/metrics").body.decode()
    return float(re.search(r"vllm:prefix_cache_hits_total\{[^}]*\} (\S+)", text)[1])  # type: ignore[index]


def test_sampled_streams_go_on_with_a_sample_of_their_own(unified: Instance, other: Instance) -> None:
    path, body = request("text", temperature=1.0, seed=7, return_token_ids=True)
    whole = ask(unified, path, body, "marks", "sampled")
    rest = resume(other, path, body, behind(whole, 10), "sampled")
    tokens = [t for e in rest.events[:-1] for t in json.loads(e[6:])["choices"][0]["token_ids"]]
    assert len(tokens) == COUNT - 10


@pytest.mark.parametrize(
    "more",
    [{"n": 2, "temperature": 1.0}, {"prompt": ["a", "b"]}, {"echo": True, "logprobs": 1}, {"stream": False}],
)
def test_what_can_not_be_gone_on_with_has_no_marks(unified: Instance, more: dict[str, Any]) -> None:
    path, body = request("text", **more)
    if not more.get("stream", True):
        answer = unified.ask(path, body, {"x-galaxy-continuation": "marks"})
        assert answer.status == 200
        assert "x-galaxy-continuation" not in answer.headers
        return
    stream = ask(unified, path, body, "marks", "none")
    assert (stream.created, stream.marks) == (b"", [])
    assert stream.events[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("field", ["resume=99999999", "resume=x", "what"])
def test_a_field_that_can_not_be_read(unified: Instance, field: str) -> None:
    path, body = request("text")
    answer = unified.ask(path, body, {"x-galaxy-continuation": field})
    assert answer.status == 400
    assert "X-Galaxy-Continuation" in answer.json["error"]["message"]


def test_a_record_with_tokens_that_the_model_has_not(unified: Instance) -> None:
    path, body = request("text")
    cut = Stream(b"1", [], [b"1 99999999"])
    rest = resume(unified, path, body, cut, "bad")
    assert rest.events[-1].startswith(b'data: {"error"')
    assert b"tokens that this model does not have" in rest.events[-1]
    assert unified.tokens(prompt(4, 10), 4)


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        (b"1 " + b",".join([b"5"] * (2048 - 150)), b"more tokens than it may have"),
        (b'1 5 ["because", null]', b"because"),
    ],
)
def test_a_record_that_no_engine_can_have_made(unified: Instance, mark: bytes, says: bytes) -> None:
    path, body = request("text", max_tokens=2048 - 150)
    rest = resume(unified, path, body, Stream(b"1", [], [mark]), "impossible")
    assert rest.events[-1].startswith(b'data: {"error"')
    assert says in rest.events[-1]
    assert unified.tokens(prompt(4, 10), 4)


def test_a_client_can_not_put_output_into_the_engine(unified: Instance) -> None:
    expected, _ = unified.tokens(prompt(5, 20), 6)
    assert unified.tokens(prompt(5, 20), 6, vllm_xargs={"galaxy_emitted": [5, 6, 7]})[0] == expected


def test_a_stream_that_is_cut_off_by_the_end_of_its_drain_has_no_end(nursery: Nursery) -> None:
    """No error event, no end of the body: whoever reads it can only take it for broken off, and go on."""
    instance = nursery.start("--drain-seconds", "1").ready()
    path, body = request("text", max_tokens=1800)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"X-Galaxy-Continuation: marks\r\nContent-Length: {len(body)}\r\n\r\n"
    text, killed = b"", False
    with socket.create_connection(("127.0.0.1", instance.port), WAIT_S) as connection:
        connection.sendall(head.encode() + body)
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                text += data
                if not killed and text.count(MARK) > 10:
                    instance.kill()
                    killed = True
    assert killed
    assert b'"error"' not in text
    assert b"[DONE]" not in text
    assert not text.endswith(b"0\r\n\r\n")


def test_decode_goes_on_with_what_another_decode_began(pd: PD) -> None:
    """The prompt's KV comes from prefill again, the tokens after it are computed here."""
    path, body = request("text", prompt=prompt(77, 400), return_token_ids=True)
    whole = ask(pd.prefill, path, body, "marks", "pair")
    for count in (1, 9, 20):
        fresh = prompt(77 + count, 400)
        path, body = request("text", prompt=fresh)
        whole = ask(pd.prefill, path, body, "marks", f"pair-{count}")
        cut = min(count, len(whole.marks) - 2)  # before the end: outputs may have been joined
        rest = resume(pd.decode, path, body, behind(whole, cut), f"pair-{count}")
        same(rest.events, whole.events[cut:])
        facts = pd.decode.get(f"/galaxy/requests/pair-{count}").json
        assert "resumed" in [name for name, _, _ in facts["marks"]]
