"""The engine's thread and callers that have gone."""

from __future__ import annotations

from concurrent.futures import Future
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
