"""The outermost layer: life, ids, heads that wait for the first byte, streams that break."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from runtimes.vllm_pd.entrance import Entrance, Message, Receive, Scope, Send
from runtimes.vllm_pd.status import Status
from runtimes.vllm_pd.timeline import CURRENT, Timelines


def entrance(*chunks: bytes, kind: bytes = b"text/event-stream", ready: bool = True) -> Entrance:
    status = Status(None)
    made = Entrance(status, Timelines())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", kind), (b"x-seen-path", scope["path"].encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        timeline = CURRENT.get()
        assert timeline is not None
        timeline.transfer = "tcp;bytes=1"  # known only after the handler began its response
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    if ready:
        made.app = app
        status.enter("ready")
    else:
        status.enter("loading")
    return made


def ask(
    made: Entrance, path: str, method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], list[bytes]]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(made(scope, receive, send))
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, [message["body"] for message in sent[1:]]


def test_the_head_waits_for_the_first_byte_and_tells_the_transfer() -> None:
    _, head, bodies = ask(entrance(b"data: 1\n\n"), "/v1/completions", x_request_id="abc")
    assert head["x-kv-transfer"] == "tcp;bytes=1"
    assert head["x-request-id"] == "abc"
    assert bodies == [b"data: 1\n\n", b""]


def test_an_id_is_made_and_can_be_looked_up() -> None:
    made = entrance(b"x")
    _, head, _ = ask(made, "/v1/completions")
    status, _, (body,) = ask(made, f"/galaxy/requests/{head['x-request-id']}", "GET")
    facts = json.loads(body)
    assert status == 200
    assert facts["header"] == "tcp;bytes=1"
    assert [name for name, _, _ in facts["marks"]] == ["received", "answered"]


def test_a_broken_stream_ends_with_the_error() -> None:
    error = b'data: {"error": {"message": "dead"}}\n\n'
    _, _, bodies = ask(entrance(b"data: 1\n\n", error, b"data: [DONE]\n\n"), "/v1/completions")
    assert bodies == [b"data: 1\n\n", error, b""]


def test_a_whole_stream_and_other_bodies_are_untouched() -> None:
    _, _, bodies = ask(entrance(b"data: 1\n\n", b"data: [DONE]\n\n"), "/v1/completions")
    assert bodies[1] == b"data: [DONE]\n\n"
    chunks = (b'data: {"error": 1}', b"data: [DONE]")
    _, _, bodies = ask(entrance(*chunks, kind=b"application/json"), "/v1/completions")
    assert bodies[:2] == list(chunks)


def test_aliases() -> None:
    _, head, _ = ask(entrance(b"x"), "/openai/v1/chat/completions")
    assert head["x-seen-path"] == "/v1/chat/completions"


def test_while_loading_it_is_alive_but_not_ready() -> None:
    made = entrance(ready=False)
    assert ask(made, "/v2/health/live", "GET")[0] == 200
    assert ask(made, "/ready", "GET")[0] == 503
    assert ask(made, "/v2/health/ready", "GET")[0] == 503
    status, head, (body,) = ask(made, "/v1/completions")
    assert (status, head["retry-after"]) == (503, "1")
    assert "loading" in json.loads(body)["error"]["message"]


def test_timelines_forget_the_oldest() -> None:
    timelines = Timelines(capacity=2)
    for name in ("a", "b", "a", "c"):
        timelines.open(name)
    assert timelines.get("b") is None
    assert timelines.get("a") is not None
