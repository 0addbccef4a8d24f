"""The seam between a node and whatever brings models near it: the node's own cache, or Fluid's.

A node asks for a model when it starts an instance, and ahead of that for revisions with the preload annotation.
Implementations decide where the bytes lie and when they go; they never decide which node an instance runs on
(`held` feeds the score of placement).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from kserve_ext.core.facts import Model


class Progress(NamedTuple):
    """Bytes that are near, of all that belong to the model."""

    done: int
    total: int


class Near(NamedTuple):
    """A model that is near: the folder to read, and how it came there, for the mark `model_cached`."""

    folder: Path
    how: str


class ModelUnusable(Exception):
    """No attempt can succeed before somebody repairs the model; the text names the path and the remedy."""


class ModelUnavailable(Exception):
    """This attempt failed (a full disk, a storage that does not answer); a later one may succeed."""


class Preloader(Protocol):
    async def fetch(self, model: Model, progress: Callable[[Progress], None]) -> Near:
        """Brings the model near, once for all who ask at the same time.

        Raises ModelUnusable or ModelUnavailable.
        """

    def keep(self, holder: str, folder: Path) -> None:
        """`holder` (an instance) uses the folder: it stays until let_go."""

    def let_go(self, holder: str) -> None: ...

    def held(self) -> tuple[str, ...]:
        """Model.key of all that is near, complete."""

    def under_way(self) -> dict[str, Progress]:
        """By Model.key, for status and people."""
