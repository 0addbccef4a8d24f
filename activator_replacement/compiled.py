"""The compiled form of the request path and of homes: the same sources through mypyc, used where it was built.

The form lies in a folder of the cache that is named after the sources' content (`python -m tools.compiled` builds it,
the image of the activator has it), so it is never another state's; where there is none, the sources themselves run.
All modules of it or none: a compiled one can't work with the source of another. GALAXY_COMPILED=off leaves it unused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

#: What every request goes through, and every start of an instance in its home.
MODULES: Final = (
    "kserve_ext.core.dispatch.affinity",
    "kserve_ext.core.dispatch.authority",
    "kserve_ext.core.dispatch.choosing",
    "kserve_ext.core.dispatch.facts",
    "kserve_ext.core.dispatch.fleet",
    "kserve_ext.core.dispatch.goal",
    "kserve_ext.core.dispatch.group",
    "kserve_ext.core.dispatch.home",
    "kserve_ext.core.dispatch.lag",
    "kserve_ext.core.dispatch.leases",
    "kserve_ext.core.dispatch.pairing",
    "kserve_ext.core.dispatch.revision_home",
    "kserve_ext.core.dispatch.setbacks",
    "kserve_ext.core.dispatch.shard",
    "kserve_ext.core.dispatch.take_over",
    "kserve_ext.core.dispatch.throttler",
    "kserve_ext.core.dispatch.yielding",
    "kserve_ext.core.knative.activation",
    "kserve_ext.core.knative.request_stats",
    "kserve_ext.core.queue.breaker",
    "kserve_ext.core.queue.request_stats",
    "kserve_ext.core.scaling.burst",
    "kserve_ext.core.scaling.decide",
    "kserve_ext.core.scaling.scale_to_zero",
    "kserve_ext.core.scaling.spec",
    "kserve_ext.core.scaling.tokens",
    "kserve_ext.core.scaling.velocity",
    "kserve_ext.core.scaling.window",
    "kserve_ext.wire.continuation",
    "kserve_ext.wire.http1",
    "kserve_ext.wire.http1_body",
    "kserve_ext.wire.http1_forward",
    "kserve_ext.wire.http1_lines",
    "kserve_ext.wire.http2.blocks",
    "kserve_ext.wire.http2.connection",
    "kserve_ext.wire.http2.fields",
    "kserve_ext.wire.http2.forward",
    "kserve_ext.wire.http2.forward_queue",
    "kserve_ext.wire.http2.frames",
    "kserve_ext.wire.http2.headers",
    "kserve_ext.wire.http2.hpack",
    "kserve_ext.wire.http2.sending",
    "kserve_ext.wire.http2.streams",
    "kserve_ext.wire.http2.translate",
    "kserve_ext.wire.knative_head",
    "kserve_ext.wire.queue_head",
    "activator_replacement.connections",
    "activator_replacement.continuing",
    "activator_replacement.exchange",
    "activator_replacement.http1",
    "activator_replacement.http2.client",
    "activator_replacement.http2.connections",
    "activator_replacement.http2.exchange",
    "activator_replacement.http2.peer",
    "activator_replacement.http2.request",
    "activator_replacement.http2.upstream",
    "activator_replacement.knative.client",
    "activator_replacement.knative.dispatcher",
    "activator_replacement.knative.exchange",
    "activator_replacement.knative.http2",
    "activator_replacement.knative.reports.durations",
    "activator_replacement.plane",
    "activator_replacement.queue.client",
    "activator_replacement.queue.dispatcher",
    "activator_replacement.queue.http2",
    "activator_replacement.upstream",
)
#: What these read of, down to the values of constants.
_READ: Final = ("activator_replacement", "kserve_ext/api", "kserve_ext/core", "kserve_ext/wire")
ROOT: Final = Path(__file__).resolve().parents[1]
COMPILED: Final = "compiled"
INTERPRETED: Final = "interpreted"


def sources() -> list[Path]:
    return [ROOT / Path(*name.split(".")).with_suffix(".py") for name in MODULES]


def folder() -> Path:
    """Where the compiled form of these very sources lies, if it was built."""
    running = hashlib.sha256(f"{sys.implementation.cache_tag} {os.uname().machine}".encode())
    for part in _READ:
        for source in sorted((ROOT / part).glob("**/*.py")):
            running.update(f"{source.relative_to(ROOT)} ".encode())
            running.update(hashlib.sha256(source.read_bytes()).digest())
    chosen = os.environ.get("GALAXY_CACHE")
    cache = Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache/kserve-galaxy"
    return cache / f"compiled-{running.hexdigest()[:12]}"


def use() -> str:
    """The form that runs from here on. To be called before any of it is imported, or the sources run."""
    if os.environ.get("GALAXY_COMPILED") != "off" and not any(name in sys.modules for name in MODULES):
        found = {
            ".".join(file.relative_to(place).parts).partition(".cpython-")[0]: file
            for place in _places()
            for file in place.glob("**/*.so")
        }
        if found:
            sys.meta_path.insert(0, _Compiled(found))
    return form()


def form() -> str:
    """COMPILED or INTERPRETED, as it is or would be imported."""
    spec = importlib.util.find_spec(MODULES[-1])
    return COMPILED if spec is not None and (spec.origin or "").endswith(".so") else INTERPRETED


def _places() -> tuple[Path, ...]:
    """Where it may be: nowhere for a user without a home, who is told of no cache either."""
    try:
        return (folder(),)
    except RuntimeError:
        return ()


class _Compiled(MetaPathFinder):
    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(name)
        return importlib.util.spec_from_file_location(name, file) if file is not None else None
