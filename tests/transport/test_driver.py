"""What a GPU says of writes by network cards decides whether they are flushed. The driver is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runtimes.transport.cuda import driver
from runtimes.transport.cuda.driver import Device

OWNER, HOST, MEMOPS = 100, 1, 2


class Driver:
    def __init__(self, options: int, ordering: int) -> None:
        self._said = {117: options, 118: ordering}
        self.called: list[tuple[Any, ...]] = []

    def call(self, name: str, *arguments: Any) -> None:
        if name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = self._said.get(arguments[1], 9)
        else:
            self.called.append((name, *arguments))

    def function(self, name: str) -> Callable[..., int]:
        return lambda *arguments: 0


@pytest.mark.parametrize(
    ("options", "ordering", "flushes", "flushable"),
    [
        (HOST, OWNER, False, True),  # as an H100 does
        (0, 2 * OWNER, False, True),
        (HOST, 0, True, True),
        (HOST | MEMOPS, 0, True, True),
        (MEMOPS, 0, True, False),
        (0, 0, True, False),
    ],
)
def test_a_cards_writes_are_flushed_where_the_gpu_does_not_order_them(
    options: int, ordering: int, flushes: bool, flushable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Driver(options, ordering)
    monkeypatch.setattr(driver, "_driver", lambda: said)
    device = Device(0)
    assert (device.flushes, device.flushable) == (flushes, flushable)
    said.called.clear()
    device.see_writes()
    assert said.called == ([("cuFlushGPUDirectRDMAWrites", 0, OWNER)] if flushes else [])
