"""`python -m tools.compiled`: builds the compiled form of the request path, or does nothing if it is there.

Says where it lies. Takes mypyc, setuptools, a C compiler and half a minute. activator_replacement/compiled.py says
which modules it has, and uses it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from activator_replacement import compiled
from tools.setup import commands, steps
from tools.setup.layout import Layout
from tools.setup.steps import SetupError, Step

#: What mypyc reads of the clone: its settings of mypy, and the packages.
_READ = ("setup.cfg", "kserve_ext", "activator_replacement")


def make() -> Path:
    """Where it lies. Raises SetupError."""
    target = compiled.folder()
    title = "compiled form of the request path"
    steps.run([Step(title, target.exists, lambda: _build(target))], target.parent / "compiled.lock")
    return target


def _build(target: Path) -> None:
    if shutil.which("gcc") is None:
        raise SetupError("there is no C compiler: apt install gcc")
    if importlib.util.find_spec("setuptools") is None:
        raise SetupError("mypyc needs setuptools: pip install setuptools")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _READ:
        source = compiled.ROOT / name
        if source.is_dir():
            shutil.copytree(source, partial / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, partial / name)
    files = [source.relative_to(compiled.ROOT) for source in compiled.sources()]
    commands.run([sys.executable, "-m", "mypyc", *files], Layout.of_user().log / "compiled.log", cwd=partial)
    for file in (partial / "build").glob("lib.*/**/*.so"):
        to = partial / "result" / Path(*file.relative_to(partial / "build").parts[1:])
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    os.rename(partial / "result", target)
    shutil.rmtree(partial)


def main() -> int:
    try:
        print(make())
    except SetupError as error:
        print(f"{error}; without the compiled form the sources run", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
