"""`python -m tools.compiled`: builds the compiled form of the request path, or does nothing if it is there.

Says where it lies. Takes mypyc, setuptools and a C compiler; half a minute. activator_replacement/compiled.py says
which modules it has and uses it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from activator_replacement import compiled

#: What mypyc reads of the clone: its settings of mypy, and the packages.
_NEEDED = ("setup.cfg", "kserve_ext", "activator_replacement")


def build(target: Path) -> None:
    """Under another name first: an interrupted build leaves nothing that is used."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as name:
        place = Path(name)
        for needed in _NEEDED:
            source = compiled.ROOT / needed
            if source.is_dir():
                shutil.copytree(source, place / needed, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            elif source.exists():
                shutil.copy(source, place)
        files = [str(source.relative_to(compiled.ROOT)) for source in compiled.sources()]
        made = subprocess.run(
            [sys.executable, "-m", "mypyc", *files],
            cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise SystemExit(f"{made.stdout[-4000:]}\nmypyc ended with {made.returncode}")
        result = place / "result"
        for file in (place / "build").glob("lib.*/**/*.so"):
            to = result / Path(*file.relative_to(place / "build").parts[1:])
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
        try:
            os.rename(result, target)
        except OSError:  # somebody else was faster
            if not target.exists():
                raise


def main() -> None:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        raise SystemExit("no C compiler: apt install gcc; without it the data plane runs from its sources")
    if importlib.util.find_spec("setuptools") is None:
        raise SystemExit("mypyc needs setuptools: pip install setuptools")
    target = compiled.folder()
    if not target.exists():
        build(target)
    print(target)


if __name__ == "__main__":
    main()
