"""What `galaxy up` and `galaxy apply` wait for before a first request would have to."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.cli import zygotes
from kserve_ext.cli.client import Answer
from kserve_ext.cli.failure import Failure

M = "runtimes.vllm_pd"


def status(*nodes: dict[str, str], wanted: tuple[str, ...] = (M,)) -> dict[str, Any]:
    return {
        "zygotes": list(wanted),
        "nodes": [{"node": f"node-{n}", "zygotes": z} for n, z in enumerate(nodes)],
    }


@pytest.mark.parametrize(
    ("found", "waited_s", "expected"),
    [
        (status({M: "starting"}), 10.0, [M]),
        (status({M: "starting"}, {M: "ready"}), 0.0, []),
        (status({M: "dead"}), 0.0, []),
        (status({M: "dead"}, {M: "starting"}), 0.0, [M]),
        (status({}), zygotes.LEARN_S / 2, [M]),
        (status({}), zygotes.LEARN_S, []),
        (status({M: "starting"}, wanted=()), 0.0, []),
        ({"nodes": [{"node": "node-0", "error": "away"}]}, 0.0, []),
    ],
)
def test_what_it_is_worth_waiting_for(found: dict[str, Any], waited_s: float, expected: list[str]) -> None:
    assert zygotes.missing(found, waited_s) == expected


class Asked:
    """A client whose cluster says these, one after the other."""

    def __init__(self, *said: dict[str, Any] | Failure) -> None:
        self.said = list(said)

    def call(self, method: str, path: str) -> Answer:
        said = self.said.pop(0)
        if isinstance(said, Failure):
            raise said
        return Answer(said)


def test_it_waits_until_the_runtime_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked(status({}), status({M: "starting"}), status({M: "ready"}))
    zygotes.wait(asked)  # type: ignore[arg-type]
    assert asked.said == []
    assert f"imported {M} after" in capsys.readouterr().err


def test_nothing_is_said_when_there_is_nothing_to_wait_for(capsys: pytest.CaptureFixture[str]) -> None:
    for said in (status({M: "ready"}), status(wanted=()), Failure("away")):
        zygotes.wait(Asked(said))  # type: ignore[arg-type]
    assert capsys.readouterr().err.strip() == ""


def test_a_runtime_that_takes_too_long_is_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "MOST_S", -1.0)
    zygotes.wait(Asked(status({M: "starting"})))  # type: ignore[arg-type]
    assert f"note: {M} is not imported yet" in capsys.readouterr().err
