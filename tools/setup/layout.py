"""Where set-up keeps things, and which of them belong to this state of the clone.

The cache folder (`GALAXY_CACHE`, else `~/.cache/kserve-galaxy`) holds everything heavy and is shared by all clones.
A name with a digest in it says what it was made from: another lock file or another recipe gives another name, so that
clones with different needs live side by side. Decides names only; never makes or removes anything.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.setup.cpu_torch import RECIPE

SOURCE = Path(__file__).resolve().parent
CLONE = SOURCE.parents[1]


def digest(files: Iterable[Path], *extra: str) -> str:
    """Twelve hex digits that change with the content of any of the files, or with any of the extra words."""
    running = hashlib.sha256("\0".join(extra).encode())
    for file in files:
        running.update(hashlib.sha256(file.read_bytes()).digest())
    return running.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Environment:
    """One Python environment of the cache: which lock files it is made from, and where it lies."""

    name: str
    locks: tuple[Path, ...]
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return (
            self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        )

    @property
    def stamp(self) -> Path:
        """Written last: an environment without it was interrupted and is made again."""
        return self.folder / "complete"

    @property
    def complete(self) -> bool:
        return self.stamp.exists()


@dataclass(frozen=True, slots=True)
class Layout:
    cache: Path
    clone: Path = CLONE

    @classmethod
    def of_user(cls, clone: Path = CLONE) -> Layout:
        chosen = os.environ.get("GALAXY_CACHE")
        return cls(
            Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache/kserve-galaxy", clone
        )

    @property
    def lock(self) -> Path:
        return self.cache / "lock"

    @property
    def log(self) -> Path:
        return self.cache / "log"

    @property
    def wheels(self) -> Path:
        return self.cache / "wheels"

    @property
    def scratch(self) -> Path:
        """Where pip unpacks; emptied around each call."""
        return self.cache / "scratch"

    @property
    def installer(self) -> Path:
        """A small environment whose pip fills the others."""
        return self.cache / f"installer-{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def venv(self) -> Path:
        return self.clone / ".venv"

    def environment(self, name: str) -> Environment:
        """`dev`: tests and tools of the control and data planes. `engines`: these, and vLLM, KServe and OpenAI."""
        kinds = {"dev": ("base", "dev"), "engines": ("base", "dev", "engines")}
        locks = tuple(self.clone / "requirements" / f"{kind}.lock" for kind in kinds[name])
        recipe = RECIPE if name == "engines" else ""
        made_from = digest(locks, f"{sys.version_info.major}.{sys.version_info.minor}", recipe)
        return Environment(name, locks, self.cache / f"env-{name}-{made_from}")

    @property
    def tiny_model(self) -> Path:
        return self.cache / "models" / f"tiny-llama-{digest([SOURCE / 'tiny_model.py'])}"

    @property
    def tiny_model_link(self) -> Path:
        """A name without a digest, for commands that people type."""
        return self.cache / "models" / "tiny-llama"
