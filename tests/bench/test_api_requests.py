"""What a line of the API server's audit log says, and the table of many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import api_requests
from bench.api_requests import Request, flags, parse, read, table
from e2e.stack import place
from e2e.stack.place import Place

AT = 1767323045.25  # 2026-01-02T03:04:05.25Z


def line(verb: str = "patch", status: int = 200, **of: str) -> str:
    event: dict[str, Any] = {
        "verb": verb,
        "userAgent": "kube-controller-manager/v1.36.3 (linux/amd64) kubernetes/abc",
        "requestReceivedTimestamp": "2026-01-02T03:04:05.250000Z",
        "responseStatus": {"code": status},
        "objectRef": {"resource": "deployments", "namespace": "default", "name": "a", **of},
    }
    return json.dumps(event)


def test_a_request_is_whose_it_is_and_what_it_is_about() -> None:
    assert parse(line()) == Request(AT, "kube-controller-manager", "patch deployments", 200)
    assert parse(line("update", 409, subresource="status")) == Request(
        AT, "kube-controller-manager", "update deployments/status", 409
    )


@pytest.mark.parametrize("said", [line("watch"), '{"verb": "get", "requestURI": "/healthz"}'])
def test_watches_and_health_are_no_requests(said: str) -> None:
    assert parse(said) is None


def test_the_table_is_per_revision_with_the_refused_apart_and_without_what_is_rare() -> None:
    patch = Request(AT, "a", "patch pods", 200)
    requests = [patch] * 150 + [patch._replace(status=409)] * 50 + [patch._replace(what="get pods")] * 4
    assert table(requests, 100) == ["     1.50  a: patch pods", "     0.50  a: patch pods -> 409"]


def test_only_what_came_later_is_read_and_nothing_where_no_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "root", lambda: tmp_path)
    stack = Place("one")
    stack.logs.mkdir(parents=True)
    assert read(stack, 0.0) == []
    policy, log = (flag.partition("=")[2] for flag in flags(stack))
    assert json.loads(Path(policy).read_text())["kind"] == "Policy"
    Path(log).write_text(line() + "\n" + line("watch") + "\n")
    assert read(stack, AT) == [parse(line())]
    assert read(stack, AT + 1) == []
    assert api_requests.program("Python/3.11 aiohttp") == "Python"
