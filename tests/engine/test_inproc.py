"""The engine's thread and callers that have gone."""

from __future__ import annotations

import asyncio
import queue
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.engine


def test_a_job_whose_caller_has_gone_is_not_run() -> None:
    from runtimes.vllm_pd.inproc import InprocAsyncClient

    client = InprocAsyncClient.__new__(InprocAsyncClient)
    ran: list[object] = []
    gone: Future[Any] = Future()
    gone.cancel()
    client._carry_out("core", ran.append, gone)
    assert not ran
    waiting: Future[Any] = Future()
    client._carry_out("core", ran.append, waiting)
    assert ran == ["core"]
    assert waiting.result(0) is None
    assert not waiting.cancel()


def test_an_error_of_a_job_goes_to_its_caller() -> None:
    from runtimes.vllm_pd.inproc import InprocAsyncClient

    client = InprocAsyncClient.__new__(InprocAsyncClient)
    done: Future[Any] = Future()

    def fail(core: object) -> None:
        raise ValueError("no")

    client._carry_out("core", fail, done)
    with pytest.raises(ValueError, match="no"):
        done.result(0)
    with pytest.raises(ValueError, match="no"):  # nobody to tell: the engine's end
        client._carry_out("core", fail, None)


def test_a_request_that_the_engine_does_not_take_ends_and_the_log_says_why(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from vllm.v1.engine import FinishReason

    from runtimes.vllm_pd.inproc import InprocAsyncClient, Life

    class Core:
        def preprocess_add_request(self, request: object) -> tuple[object, int]:
            raise RuntimeError("out of cheese")

    client = InprocAsyncClient.__new__(InprocAsyncClient)
    client.resources, client._jobs = Life(), queue.SimpleQueue()
    client.first_token = {"r-1": lambda: None}
    published: list[Any] = []
    client._publish = published.append  # type: ignore[method-assign, assignment]
    asyncio.run(client.add_request_async(SimpleNamespace(request_id="r-1")))
    job = client._jobs.get_nowait()
    assert job is not None
    client._carry_out(Core(), *job)
    assert [(o.request_id, o.finish_reason) for o in published[0].outputs] == [("r-1", FinishReason.ERROR)]
    assert client.first_token == {}
    log = capfd.readouterr().err
    assert "r-1" in log
    assert "Traceback" in log
    assert "RuntimeError: out of cheese" in log
