"""Which form of the request path runs: never one of other sources, and all of it or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from activator_replacement import compiled

#: A process that begins as the entries do; a module of the form and its form are printed.
BEGIN = """
from activator_replacement import compiled
{before}
form = compiled.use()
import activator_replacement.plane as plane
print(form, compiled.form(), plane.__file__)
"""


def begin(cache: Path, before: str = "", switch: str = "") -> list[str]:
    env = {**os.environ, "GALAXY_CACHE": str(cache), "GALAXY_COMPILED": switch}
    argv = [sys.executable, "-c", BEGIN.format(before=before)]
    done = subprocess.run(argv, env=env, cwd=compiled.ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_without_a_compiled_form_the_sources_run(tmp_path: Path) -> None:
    assert begin(tmp_path) == [
        "interpreted",
        "interpreted",
        str(compiled.ROOT / "activator_replacement/plane.py"),
    ]


def test_whoever_has_no_home_has_no_compiled_form() -> None:
    no_home = "import os, pwd; os.environ.pop('HOME', ''); pwd.getpwuid = {}.__getitem__"
    nobody = f"{no_home}; del os.environ['GALAXY_CACHE']"
    assert begin(Path(), nobody)[:2] == ["interpreted", "interpreted"]


def test_another_content_has_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GALAXY_CACHE", str(tmp_path / "cache"))
    before = compiled.folder()
    assert before.parent == tmp_path / "cache"
    for part in ("activator_replacement", "kserve_ext/wire"):
        (tmp_path / "clone" / part).mkdir(parents=True)
    source = tmp_path / "clone/kserve_ext/wire/http1.py"
    monkeypatch.setattr(compiled, "ROOT", tmp_path / "clone")
    source.write_text("A = 1\n")
    one = compiled.folder()
    source.write_text("A = 2\n")
    assert len({before, one, compiled.folder()}) == 3


def test_every_module_of_the_form_is_a_source() -> None:
    assert all(source.is_file() for source in compiled.sources())


@pytest.mark.skipif(not compiled.folder().exists(), reason="not built: python -m tools.compiled")
def test_the_compiled_form_runs_where_it_was_built() -> None:
    cache = compiled.folder().parent
    form, now, file = begin(cache)
    assert (form, now) == ("compiled", "compiled")
    assert Path(file).is_relative_to(compiled.folder())
    assert begin(cache, switch="off")[0] == "interpreted"
    assert begin(cache, before="import kserve_ext.wire.http1")[0] == "interpreted"
