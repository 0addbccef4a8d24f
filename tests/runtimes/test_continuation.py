"""Marks and records by themselves: a handler that is given the outputs again comes into the state that it had."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire.continuation import MarkedStream, chunk
from runtimes.vllm_pd import continuation
from runtimes.vllm_pd.continuation import ASKED, BadRecord, Finish, Message, Record, read_record

BODY = b'{"prompt": "x"}'


def output(tokens: list[int], last: bool) -> Any:
    one = SimpleNamespace(token_ids=tokens, finish_reason="stop" if last else None, stop_reason="é\n")
    return SimpleNamespace(outputs=[one], finished=last)


class Instance:
    """Puts out `tokens` in groups of `sizes`; its handler holds odd tokens back until an even one comes."""

    def __init__(self, tokens: list[int], sizes: list[int], created: int, chat: bool) -> None:
        self.tokens = tokens
        self.sizes = sizes
        self.created = created
        self.chat = chat
        self.received = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.received = (await receive())["body"]
        asked = ASKED.get()
        assert asked is not None
        asked.begins(True)
        record = asked.record or Record(b"")
        groups = [list(group) for group in record.outputs]
        asked.repeated = len(groups)
        left = self.tokens[len(record.tokens) :]
        for turn in range(len(left)):
            size = self.sizes[turn % len(self.sizes)]
            if left:
                groups.append(left[:size])
                left = left[size:]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.chat:
            await self._event(send, "role")
        held: list[int] = []
        said = 0
        for group in groups:
            said += len(group)
            last = said == len(self.tokens)
            asked.put_out(output(group, last))
            held += group
            if held[-1] % 2 and not last:
                continue
            await self._event(send, f"{held} of {said}")
            held = []
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, send: Any, text: str) -> None:
        body = f'data: {{"created":{self.created},"text":"{text}"}}\n\n'.encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})


def serve(instance: Instance, body: bytes, field: str) -> tuple[bytes, list[bytes]]:
    """What the head says of the record's beginning, and the body's pieces."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        path = "/v1/chat/completions" if instance.chat else "/v1/completions"
        scope = {"path": path, "headers": [(b"content-length", b"%d" % len(body))]}
        await instance(*await continuation.begin(scope, receive, send, field))

    asyncio.run(run())
    begins = dict(sent[0]["headers"])[continuation.FIELD]
    return begins, [m["body"] for m in sent[1:] if m["body"]]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=4, max_size=4),
    st.lists(st.integers(0, 40), min_size=1, max_size=3),
    st.booleans(),
)
def test_cut_behind_any_event_and_gone_on_with_it_is_one_stream(
    tokens: list[int], sizes: list[list[int]], cuts: list[int], chat: bool
) -> None:
    begins, pieces = serve(Instance(tokens, sizes[0], 17, chat), BODY, "marks")
    stream = MarkedStream(begins)
    got = b""
    for life, cut in enumerate(cuts, 1):
        for piece in pieces[:cut]:
            got += stream.feed(chunk(piece)).partition(b"\r\n")[2].removesuffix(b"\r\n")
        if stream.done:
            break
        stream.break_off()
        instance = Instance(tokens, sizes[life], 18 + life, chat)
        field = f"resume={len(BODY)}"
        begins, pieces = serve(instance, BODY + stream.record, field)
        assert instance.received == BODY
        assert begins == b"17"
    else:
        for piece in pieces:
            got += stream.feed(chunk(piece)).partition(b"\r\n")[2].removesuffix(b"\r\n")
    assert got.endswith(b"data: [DONE]\n\n")
    assert got.count(b"[DONE]") == 1
    assert got.count(b"role") == chat
    events = got.split(b"\n\n")[:-2]
    assert all(event.startswith(b'data: {"created":17,') for event in events)
    said = [event.partition(b'"text":"')[2] for event in events if b"role" not in event]
    given = [int(t) for text in said for t in text[1 : text.index(b"]")].split(b",") if t.strip()]
    assert given == tokens
    assert said[-1].endswith(b'of %d"}' % len(tokens))


def test_a_record() -> None:
    text = b'17\n1 -\n2 5,6;7\n3 8 ["stop", "\\u00e9\\n"]'
    assert read_record(text) == Record(b"17", 3, ((5, 6), (7,), (8,)), Finish("stop", "é\n"))
    assert read_record(b"17") == Record(b"17")


@pytest.mark.parametrize("text", [b"", b"x", b"17\n", b"17\n1", b"17\n1 x", b"17\n1 5 {", b"17\n1 5 [1]"])
def test_what_is_no_record(text: bytes) -> None:
    with pytest.raises(BadRecord, match="can't be read"):
        read_record(text)
