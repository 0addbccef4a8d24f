"""Which program a container's image stands for.

The one place that tells stock from ours: whoever swaps the image of a Deployment swaps the implementation, as in a
cluster. An image is matched by its last word, without registry and tag. A test may give a stack programs for further
images (`give`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from e2e import build
from e2e.stack.place import Place

STOCK = ("activator", "autoscaler", "controller", "webhook", "queue")
STOCK_TAG = f"v{build.KNATIVE_VERSION}"
USER_SERVER = "e2e.local/server:1"
KSERVE = f"kserve.local/kserve-manager:v{build.KSERVE_VERSION}"
#: Image of ours -> module.
OURS = {
    "galaxy-activator": "activator_replacement.knative",
    "galaxy-autoscaler": "autoscaler_shim.knative",
}


class UnknownImage(Exception):
    pass


def stock_image(name: str) -> str:
    return f"knative.local/{name}:{STOCK_TAG}"


def our_image(name: str) -> str:
    return f"galaxy.local/{name}:1"


def short(image: str) -> str:
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def give(place: Place, programs: Mapping[str, Sequence[str]]) -> None:
    """From now on these stand for images of these last words, too."""
    file = _file(place)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({**given(place), **programs}))
    os.replace(partial, file)


def given(place: Place) -> dict[str, list[str]]:
    try:
        found: dict[str, list[str]] = json.loads(_file(place).read_text())
    except FileNotFoundError:
        return {}
    return found


def _file(place: Place) -> Path:
    return place.folder / "images.json"


def argv(container: dict[str, Any], more: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[str]:
    """The image's program, or the container's own command, with the container's arguments. `more`: of images."""
    name = short(container["image"])
    if container.get("command"):
        first, *rest = container["command"]
        program = [sys.executable if first.rpartition("/")[2].startswith("python") else first, *rest]
    elif name in more:
        program = list(more[name])
    elif name in OURS:
        program = [sys.executable, "-m", OURS[name]]
    elif name in (*STOCK, "server", "kserve-manager"):
        program = [str(build.program(name))]
    else:
        known = ", ".join([*STOCK, "server", "kserve-manager", *OURS, *more])
        raise UnknownImage(f"image {container['image']!r}: no program stands for {name!r} (known: {known})")
    return [*program, *container.get("args", [])]
