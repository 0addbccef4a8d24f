"""The cache's Python environments, and the light `.venv` of a clone that borrows from them.

An environment is named after its lock files and never changes once complete, so clones can share it. The clone's
`.venv` holds two things: a path file that names the environment's packages and the clone, and the `galaxy` command.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import venv
from pathlib import Path

from tools.setup import commands, pins, wheels
from tools.setup.layout import Environment, Layout

GALAXY = """\
#!/bin/sh
# The command `galaxy` of the clone that this folder belongs to.
here=$(dirname "$(readlink -f "$0")")
exec "$here/python" -P -m kserve_ext.cli "$@"
"""


def make_installer(layout: Layout) -> None:
    partial = layout.cache / f"{layout.installer.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    commands.run([sys.executable, "-m", "venv", "--symlinks", partial], layout.log / "installer.log")
    shutil.rmtree(layout.installer, ignore_errors=True)
    os.replace(partial, layout.installer)


def requirements(layout: Layout, environment: Environment) -> str:
    """The pins of the environment; torch as the file that set-up got or made."""
    lines = []
    for name, pin in sorted(pins.read(environment.locks).items()):
        built = wheels.cpu_build(layout, pin) if name == "torch" else None
        lines.append(
            f"{name} @ {built.as_uri()} --hash=sha256:{pins.sha256_of(built)}" if built else str(pin)
        )
    return "\n".join(lines) + "\n"


def fill(layout: Layout, environment: Environment) -> None:
    """Make the environment from nothing, and from nothing but the cache's wheels."""
    shutil.rmtree(environment.folder, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(environment.folder)
    listing = environment.folder / "requirements.txt"
    listing.write_text(requirements(layout, environment), encoding="utf-8")
    options = (
        "--no-index",
        "--find-links",
        layout.wheels,
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--progress-bar",
        "off",
        "-r",
        listing,
    )
    commands.pip(layout, environment.folder.name, "install", *options, python=environment.python)
    environment.stamp.touch()


def linked(layout: Layout, environment: Environment) -> bool:
    """Whether the clone's `.venv` is there and borrows from this environment."""
    python, (path_file, _) = layout.venv / "bin" / "python", link_files(layout, environment)
    return (
        python.exists()
        and (layout.venv / "bin" / "galaxy").exists()
        and path_file.exists()
        and path_file.read_text(encoding="utf-8") == path_text(layout, environment)
    )


def link(layout: Layout, environment: Environment) -> None:
    """Make or repair `.venv`. Programs that run from it meanwhile keep working."""
    if not (layout.venv / "bin" / "python").exists():
        venv.EnvBuilder(symlinks=True, with_pip=False).create(layout.venv)
    path_file, galaxy = link_files(layout, environment)
    path_file.parent.mkdir(parents=True, exist_ok=True)
    replace(galaxy, GALAXY, 0o755)
    replace(path_file, path_text(layout, environment), 0o644)


def link_files(layout: Layout, environment: Environment) -> tuple[Path, Path]:
    inside = environment.site_packages.relative_to(environment.folder)
    return layout.venv / inside / "galaxy.pth", layout.venv / "bin" / "galaxy"


def path_text(layout: Layout, environment: Environment) -> str:
    return f"{environment.site_packages}\n{layout.clone}\n"


def make_model(layout: Layout, environment: Environment) -> None:
    final = layout.tiny_model
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    program = layout.clone / "tools" / "setup" / "tiny_model.py"
    commands.run([environment.python, "-P", program, partial], layout.log / "tiny-model.log")
    os.replace(partial, final)


def model_linked(layout: Layout) -> bool:
    link = layout.tiny_model_link
    return (
        (layout.tiny_model / "config.json").exists()
        and link.exists()
        and link.resolve() == layout.tiny_model.resolve()
    )


def link_model(layout: Layout) -> None:
    fresh = layout.tiny_model_link.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(layout.tiny_model.name)
    os.replace(fresh, layout.tiny_model_link)


def replace(file: Path, text: str, mode: int) -> None:
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(mode)
    os.replace(fresh, file)


def describe(layout: Layout, environment: Environment) -> str:
    """For `--where`: what belongs to this clone, as JSON."""
    facts = {
        "cache": layout.cache,
        "environment": environment.folder,
        "model": layout.tiny_model,
        "venv": layout.venv,
    }
    return json.dumps({name: str(path) for name, path in facts.items()}, indent=2)
