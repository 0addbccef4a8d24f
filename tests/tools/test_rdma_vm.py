"""The machine with soft-RoCE: which kernel is taken, what is said when something is missing, what scripts hold."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.rdma_vm import guest, kernel
from tools.setup.layout import Layout
from tools.setup.steps import SetupError


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.delenv(kernel.CHOSEN, raising=False)
    return Layout(tmp_path)


def packed(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(content))
    return path


def test_there_is_no_kernel_at_first(layout: Layout) -> None:
    assert kernel.find(layout) is None


def test_one_brought_along_is_unpacked_once(layout: Layout) -> None:
    packed(kernel.folder(layout) / "uml-linux-6.1.xz", b"a kernel")
    found = kernel.find(layout)
    assert found is not None
    assert found.read_bytes() == b"a kernel"
    assert found.stat().st_mode & 0o100
    unpacked = found.stat().st_mtime_ns
    assert kernel.find(layout) == found
    assert found.stat().st_mtime_ns == unpacked


def test_a_built_one_comes_first_and_a_chosen_one_before_it(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(kernel.folder(layout) / "uml-linux-6.1.xz", b"a kernel")
    kernel.built(layout).parent.mkdir(parents=True)
    kernel.built(layout).write_bytes(b"built")
    assert kernel.find(layout) == kernel.built(layout)
    monkeypatch.setenv(kernel.CHOSEN, str(packed(tmp_path / "mine.xz", b"mine")))
    found = kernel.find(layout)
    assert found is not None
    assert found.read_bytes() == b"mine"
    monkeypatch.setenv(kernel.CHOSEN, str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match=f"{kernel.CHOSEN} names .*nowhere, which is no file"):
        kernel.find(layout)


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    there = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("flex", "xz") else there(name) or name)
    with pytest.raises(SetupError, match=r"building the kernel needs flex, xz: apt install .* flex xz-utils"):
        kernel.require(kernel.BUILD_NEEDS, "building the kernel")


@pytest.mark.parametrize("links", sorted(guest.LINKS))
def test_its_scripts_are_shell(tmp_path: Path, links: str) -> None:
    env = {"QUOTED": "a'b", "not a name": "x"}
    guest.write(tmp_path, ["echo", "it's"], links, env, Path("/work dir"), [Path("/tmp/a clone")])
    for script in ("first", "second", "links", "links-up", "command"):
        subprocess.run(["sh", "-n", str(tmp_path / script)], check=True)
    assert "mount -t hostfs -o '/tmp/a clone' own '/run/root/tmp/a clone'" in (tmp_path / "first").read_text()
    command = (tmp_path / "command").read_text()
    assert "cd '/work dir' || exit 125" in command
    assert "not a name" not in command
    assert ("type veth" in (tmp_path / "links").read_text()) == (links == "pair")
