"""What a slot's variables come from changes as the kubelet changes it: a link is put in another's place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from autoscaler_shim.slot import values
from autoscaler_shim.slot.values import Values
from tests.support.dataplane import run


def write(folder: Path, version: str) -> None:
    (folder / version).mkdir(parents=True)
    made = folder / "..data_tmp"
    made.symlink_to(version)
    made.rename(folder / "..data")


@pytest.mark.parametrize("there", [True, False])
def test_a_secret_that_changes_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool) -> None:
    """`there`: when the pod began; one that is optional may come later."""
    monkeypatch.setattr(values, "LOOK_S", 0.001)
    other, folder = tmp_path / "configmap" / "c", tmp_path / "secret" / "keys"
    write(other, "..1")
    if there:
        write(folder, "..1")

    async def test() -> None:
        changed = asyncio.ensure_future(Values((other, folder)).changed())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not changed.done()
        write(folder, "..2")
        assert await asyncio.wait_for(changed, 20) == "secret keys, which variables come from, has changed"

    run(test())
