"""What a slot's variables come from changes as the kubelet changes it: a link is put in another's place."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
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
        changed = asyncio.ensure_future(Values((other, folder), time.time()).changed())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not changed.done()
        write(folder, "..2")
        assert await asyncio.wait_for(changed, 20) == "secret keys, which variables come from, has changed"

    run(test())


def test_one_that_has_changed_before_anybody_looked_is_named(tmp_path: Path) -> None:
    """Between the start of the container, which has the former value, and that of the slot."""
    folder = tmp_path / "secret" / "keys"
    write(folder, "..2")
    made = (folder / "..data").lstat().st_mtime

    async def test() -> None:
        for began, named in ((made - 1.0, True), (made + 0.01, False), (made - 0.05, False)):
            changed = asyncio.ensure_future(Values((folder,), began).changed())
            for _ in range(3):
                await asyncio.sleep(0)
            assert changed.done() == named, began
            changed.cancel()

    run(test())


def test_when_this_process_began_is_known() -> None:
    before = time.time()
    child = "import time; from autoscaler_shim.slot import values; print(values._began(), time.time())"
    said = subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, text=True).stdout
    began, later = map(float, said.split())
    assert before - 0.05 <= began <= later
