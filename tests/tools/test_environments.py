"""The cache and a clone's .venv: fetching, checking, linking, moving. No network: the index is a folder."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.setup import environments, wheels
from tools.setup.layout import Environment, Layout
from tools.setup.pins import Pin
from tools.setup.steps import SetupError


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """A real wheel with one module that says its version."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = '{version}'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return file


@pytest.fixture(scope="module")
def installer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = Layout(tmp_path_factory.mktemp("installer"))
    environments.make_installer(layout)
    return layout.installer


@pytest.fixture
def layout(tmp_path: Path, installer: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An empty cache and clone; pip sees only the folder `index`."""
    layout = Layout(tmp_path / "cache", tmp_path / "clone")
    layout.wheels.mkdir(parents=True)
    layout.installer.symlink_to(installer)
    (layout.clone / "requirements").mkdir(parents=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return layout


def pin(wheel: Path) -> Pin:
    name, version = wheel.name.split("-")[:2]
    return Pin(name, version, hashlib.sha256(wheel.read_bytes()).hexdigest())


def environment(layout: Layout, *wanted: Pin) -> Environment:
    (layout.clone / "requirements/dev.lock").write_text("".join(f"{one}\n" for one in wanted))
    (layout.clone / "requirements/base.lock").touch()
    wheels.fetch(layout, wanted)
    return layout.environment("dev")


def run(python: Path, code: str) -> str:
    return subprocess.run(
        [python, "-P", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_wheel_is_fetched_once_and_its_hash_is_checked(layout: Layout, tmp_path: Path) -> None:
    served = write_wheel(tmp_path / "index", "tiny", "1.0")
    wanted = pin(served)
    wheels.fetch(layout, [wanted])
    assert wheels.missing(layout, [wanted]) == []
    assert (layout.wheels / served.name).read_bytes() == served.read_bytes()
    served.unlink()
    wheels.fetch(layout, [wanted])  # the index is empty now: asking it would fail


def test_a_broken_wheel_in_the_cache_is_fetched_again(layout: Layout, tmp_path: Path) -> None:
    served = write_wheel(tmp_path / "index", "tiny", "1.0")
    (layout.wheels / served.name).write_bytes(served.read_bytes()[:100])
    wheels.fetch(layout, [pin(served)])
    assert (layout.wheels / served.name).read_bytes() == served.read_bytes()


def test_a_wheel_that_is_not_the_locked_one_is_refused(layout: Layout, tmp_path: Path) -> None:
    served = write_wheel(tmp_path / "index", "tiny", "1.0")
    with pytest.raises(SetupError, match="DO NOT MATCH THE HASHES"):
        wheels.fetch(layout, [pin(served)._replace(sha256="0" * 64)])
    assert list(layout.wheels.glob("*.whl")) == []


def test_a_fetch_that_is_cut_off_keeps_what_it_has(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "BATCH", 1)
    first, second = (write_wheel(tmp_path / "index", name, "1.0") for name in ("first", "second"))
    wanted = [pin(first), pin(second)]
    second = second.rename(tmp_path / second.name)
    with pytest.raises(SetupError, match="try again"):
        wheels.fetch(layout, wanted)
    assert wheels.missing(layout, wanted) == [wanted[1]]
    first.unlink()
    second.rename(tmp_path / "index" / second.name)
    wheels.fetch(layout, wanted)
    assert wheels.missing(layout, wanted) == []


def test_an_index_with_a_cpu_build_of_torch_spares_the_repacking(layout: Layout, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", "torch", "9.9+cpu").rename(
        tmp_path / "index/torch-9.9+cpu-cp311-none-any.whl"
    )
    torch = Pin("torch", "9.9", "0" * 64)
    assert wheels.cpu_build(layout, torch) is None
    wheels.make_cpu_build(layout, torch)
    built = wheels.cpu_build(layout, torch)
    assert built is not None
    assert built.name == "torch-9.9+cpu-cp311-none-any.whl"


def test_a_clone_borrows_the_environment_and_can_be_moved(layout: Layout, tmp_path: Path) -> None:
    made = environment(layout, pin(write_wheel(tmp_path / "index", "tiny", "1.0")))
    before = made.complete
    environments.fill(layout, made)
    assert (before, made.complete) == (False, True)
    environments.link(layout, made)
    assert environments.linked(layout, made)
    (layout.clone / "ours.py").write_text("HERE = __file__\n")
    says = "import tiny, ours; print(tiny.VERSION, ours.HERE)"
    assert run(layout.venv / "bin/python", says) == f"1.0 {layout.clone / 'ours.py'}"

    moved = Layout(layout.cache, layout.clone.rename(tmp_path / "moved"))
    assert not environments.linked(moved, made)
    environments.link(moved, made)
    assert run(moved.venv / "bin/python", says) == f"1.0 {tmp_path / 'moved/ours.py'}"


def test_another_lock_makes_another_environment_beside_the_first(layout: Layout, tmp_path: Path) -> None:
    first = environment(layout, pin(write_wheel(tmp_path / "index", "tiny", "1.0")))
    environments.fill(layout, first)
    second = environment(layout, pin(write_wheel(tmp_path / "index", "tiny", "2.0")))
    assert second.folder != first.folder
    environments.fill(layout, second)
    environments.link(layout, second)
    assert not environments.linked(layout, first)
    assert run(layout.venv / "bin/python", "import tiny; print(tiny.VERSION)") == "2.0"
    assert first.complete


def test_an_environment_cut_off_halfway_is_made_again(layout: Layout, tmp_path: Path) -> None:
    made = environment(layout, pin(write_wheel(tmp_path / "index", "tiny", "1.0")))
    made.site_packages.mkdir(parents=True)
    (made.site_packages / "tiny.py").write_text("half a module")
    environments.fill(layout, made)
    assert run(made.python, "import tiny; print(tiny.VERSION)") == "1.0"


def test_the_command_works_from_any_folder_and_through_a_link(layout: Layout, tmp_path: Path) -> None:
    made = environment(layout)
    environments.fill(layout, made)
    environments.link(layout, made)
    command = layout.clone / "kserve_ext/cli"
    command.mkdir(parents=True)
    (command / "__main__.py").write_text("import sys; print('galaxy', *sys.argv[1:])")
    (tmp_path / "link").symlink_to(layout.venv / "bin/galaxy")
    done = subprocess.run(
        [tmp_path / "link", "get", "a b"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "galaxy get a b\n"


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--only", "all"], "invalid choice"), (["--where"], '"cache"')]
)
def test_the_command_line(arguments: list[str], says: str) -> None:
    clone = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tools.setup", *arguments]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert says in done.stdout + done.stderr
