"""The Dockerfiles, as far as can be told without building: what they copy and what the parts import is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

from kserve_ext.cli.knative.parts import PARTS

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "manifests" / "images"
NAMES = ["activator", "autoscaler", "runtime"]
#: Prints the top-level modules that importing a module brings in from outside the standard library.
IMPORTED = """
import importlib, sys
importlib.import_module({module!r})
names = {{name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}}
print(*sorted(names - sys.stdlib_module_names))
"""


class Line(NamedTuple):
    word: str  # FROM, COPY, ...
    rest: str


def stages(name: str) -> list[list[Line]]:
    """The instructions of each stage, without what stands before the first."""
    text = (IMAGES / f"{name}.Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    found: list[list[Line]] = []
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if word and found:
            found[-1].append(Line(word, " ".join(rest.split())))
    return found


def of(stage: list[Line], word: str) -> list[str]:
    return [line.rest for line in stage if line.word == word]


def copies(name: str) -> list[tuple[str, str]]:
    """Source in the repository, and where it goes."""
    found = []
    for stage in stages(name):
        for rest in of(stage, "COPY"):
            if not rest.startswith("--from="):
                source, target = rest.split()
                found.append((source, target))
    return found


def ignored(name: str) -> tuple[set[str], set[str]]:
    """What the context lets in, and what of that it leaves out again."""
    lines = (IMAGES / f"{name}.Dockerfile.dockerignore").read_text().split()
    assert lines[0] == "*"
    return {line[1:] for line in lines if line.startswith("!")}, set(lines[1:])


def image_tree(name: str, into: Path) -> Path:
    """The source folder as it is in the image."""
    _, left_out = ignored(name)
    for source, target in copies(name):
        if "/source/" not in target:
            continue

        def skip(folder: str, names: list[str]) -> set[str]:
            inside = Path(folder).relative_to(ROOT)
            return {n for n in names if n == "__pycache__" or str(inside / n) in left_out}

        shutil.copytree(ROOT / source, into / Path(target).name, symlinks=True, ignore=skip)
    return into


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_is_there_and_in_the_context(name: str) -> None:
    let_in, left_out = ignored(name)
    for source, _ in copies(name):
        assert (ROOT / source).exists()
        assert source in let_in
    for path in left_out:
        if not path.startswith(("!", "*")):
            assert (ROOT / path).exists()


@pytest.mark.parametrize("name", NAMES)
def test_packages_come_from_lock_files_by_hash(name: str) -> None:
    run = " ".join(of(stages(name)[0], "RUN"))
    if name == "runtime":  # the set-up does it: tests/tools
        assert "python -m tools.setup" in run
        return
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(run.split())
    lock = re.search(r"--requirement=/(\S+)", run)
    assert lock is not None
    pins = [line for line in (ROOT / lock[1]).read_text().splitlines() if line and line[0] != "#"]
    assert pins
    assert all(re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", pin) for pin in pins)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_stage_runs_as_nobody_and_has_no_compiler(name: str) -> None:
    *_, last = stages(name)
    assert of(last, "FROM") == ["${PYTHON}"]
    compiled = ["--from=compiled /opt/galaxy/cache /opt/galaxy/cache"] if name == "activator" else []
    assert of(last, "COPY") == ["--from=packages /opt/galaxy /opt/galaxy", *compiled]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", of(last, "USER")[0])  # a number, so that runAsNonRoot can tell
    assert not re.search(r"gcc|g\+\+|build-essential|pip install", " ".join(of(last, "RUN")))


def test_the_compiled_form_is_of_the_sources_that_run_beside_it() -> None:
    """It is named after their content: both stages have the same, and the last finds it where it was built."""
    packages, compiled, last = stages("activator")
    parts = {rest.split()[0] for rest in of(packages, "COPY")} - {"requirements/base.lock"}
    assert parts <= {rest.split()[0] for rest in of(compiled, "COPY")}
    assert "GALAXY_CACHE=/opt/galaxy/cache python -m tools.compiled" in of(compiled, "RUN")
    assert "GALAXY_CACHE=/opt/galaxy/cache" in " ".join(of(last, "ENV")).split()


@pytest.mark.parametrize(
    ("name", "ports"), [("activator", {8012, 8013, 8112, 9090}), ("autoscaler", {8080, 9090})]
)
def test_a_port_is_exposed_only_if_something_listens_there(name: str, ports: set[int]) -> None:
    assert {int(port) for port in of(stages(name)[-1], "EXPOSE")[0].split()} == ports


@pytest.mark.parametrize("name", ["activator", "autoscaler"])
def test_the_image_holds_all_that_its_process_imports(name: str, tmp_path: Path) -> None:
    command = json.loads(of(stages(name)[-1], "ENTRYPOINT")[0])
    assert command[:2] == ["python", "-m"]
    tree = image_tree(name, tmp_path / "source")
    packages = next(
        path for path in sys.path if path.endswith("site-packages") and Path(path, "msgspec").is_dir()
    )
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", IMPORTED.format(module=f"{command[2]}.__main__")],
        env={"PYTHONPATH": f"{tree}:{packages}", "GALAXY_COMPILED": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own = {path.name for path in tree.iterdir()}
    lock = (ROOT / "requirements" / "base.lock").read_text().lower().replace("-", "_")
    by_module = packages_distributions()
    for module in set(done.stdout.split()) - own:
        pinned = [f"{d.lower().replace('-', '_')}==" in lock for d in by_module.get(module, [module])]
        assert any(pinned), f"{module} is not in base.lock"


def test_the_command_in_the_control_image_finds_its_manifests(tmp_path: Path) -> None:
    tree = image_tree("autoscaler", tmp_path / "source")
    assert (tree / "kserve_ext" / "manifests" / "overlays" / "knative" / "kustomization.yaml").exists()


def test_there_is_a_dockerfile_for_each_part() -> None:
    assert {part.image.removeprefix("galaxy-") for part in PARTS} <= set(NAMES)
