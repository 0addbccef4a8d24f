"""Decode's cache of channels: asking a prefill instance where its channels listen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from runtimes.transport.channel import ChannelError
from runtimes.vllm_pd.channels import lookup


class _Prefill(BaseHTTPRequestHandler):
    answer = b'{"channel": "127.0.0.1:4711"}'

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/galaxy/channel" else 404)
        self.send_header("content-length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def addr() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Prefill)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_a_peer(addr: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert lookup(addr) == "127.0.0.1:4711"


@pytest.mark.parametrize("answer", [b"not JSON", b"{}", b""])
def test_whoever_is_no_prefill_instance_is_unreachable(
    addr: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(_Prefill, "answer", answer)
    with pytest.raises(ChannelError) as caught:
        lookup(addr)
    assert caught.value.reason == "unreachable"
