"""What a standby pod of level S1 is told of its engine's shape, as an instance's arguments.

GALAXY_SLOT_SHAPE has them, as JSON or as a command line, mostly without a model: pools are of many. Then the engine
is made for a config.json that can be found: in the folder that GALAXY_SLOT_CONFIG names, else in the first by name
below the claims that are mounted. Services of another shape are forked, as from any zygote.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from kserve_ext.api.standby.names import CLAIMS, ENV_LEVEL, ENV_SHAPE

CONFIG = "GALAXY_SLOT_CONFIG"
_DEPTH = 3
_MOST_FOLDERS = 2000  # a claim may hold anything


class NoShape(Exception):
    """Why there can't be a shaped engine, and what to set."""


def shape_arguments(environ: Mapping[str, str], claims: Path = Path(CLAIMS)) -> list[str] | None:
    """None: the pod is not of that level. Raises NoShape."""
    if environ.get(ENV_LEVEL) != "S1":
        return None
    words = _words(environ.get(ENV_SHAPE, ""))
    if any(word == "--model" or word.startswith("--model=") for word in words):
        return words
    folder = environ.get(CONFIG) or _first_with_config(claims)
    if not folder:
        raise NoShape(f"no config.json is below {claims}: name a folder that has the shape's in {CONFIG}")
    return [*words, "--model", folder]


def _words(text: str) -> list[str]:
    try:
        found = json.loads(text) if text.startswith("[") else shlex.split(text)
    except ValueError as error:
        raise NoShape(f"{ENV_SHAPE} can't be read ({error}): give an instance's arguments") from error
    return [str(word) for word in found]


def _first_with_config(root: Path) -> str:
    """Breadth first, so that a model's own folder comes before what lies in it."""
    level, looked = [str(root)], 0
    for _ in range(_DEPTH + 1):
        below: list[str] = []
        for folder in level:
            looked += 1
            if looked > _MOST_FOLDERS:
                return ""
            try:
                if os.path.isfile(os.path.join(folder, "config.json")):
                    return folder
                below += sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
            except OSError:
                continue
        level = below
    return ""
