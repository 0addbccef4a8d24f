"""Which program a container's image stands for.

The one place that tells stock from ours: whoever swaps the image of a Deployment swaps the implementation, as in a
cluster. An image is matched by its last word, without registry and tag.
"""

from __future__ import annotations

import sys
from typing import Any

from e2e import build

STOCK = ("activator", "autoscaler", "controller", "webhook", "queue")
STOCK_TAG = f"v{build.KNATIVE_VERSION}"
USER_SERVER = "e2e.local/server:1"
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


def argv(container: dict[str, Any]) -> list[str]:
    """The image's program, or the container's own command, with the container's arguments."""
    name = short(container["image"])
    if container.get("command"):
        first, *rest = container["command"]
        program = [sys.executable if first.rpartition("/")[2].startswith("python") else first, *rest]
    elif name in OURS:
        program = [sys.executable, "-m", OURS[name]]
    elif name in (*STOCK, "server"):
        program = [str(build.program(name))]
    else:
        known = ", ".join([*STOCK, "server", *OURS])
        raise UnknownImage(f"image {container['image']!r}: no program stands for {name!r} (known: {known})")
    return [*program, *container.get("args", [])]
