"""What a standby pod's environment says to its slot: the pod's own fields by the downward API, and GALAXY_ variables.

A value that is missing or can't be read ends the start with its name and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_args

from kserve_ext.api import durations
from kserve_ext.api.standby import names
from kserve_ext.core.standby.facts import Level

#: Of the memory that a pod may have, what weights of sleeping engines may take: processes need the rest.
FOR_WEIGHTS: Final = 0.75


class EnginePlan(NamedTuple):
    """Of S2: an engine that is to sleep here."""

    name: str  # as in the annotation
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    model: Path


class BadEnvironment(Exception):
    """The message names the variable, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Settings:
    pod: str
    namespace: str
    uid: str
    ip: str
    pool: str  # its digest, as in the pod's label
    #: A runtime: package with a module `zygote`, which forks its servers.
    zygote: str
    agent_socket: str
    token_file: Path  # projected token of the ServiceAccount, audience kserve-galaxy.io
    level: Level
    gpus: int  # that the pod has
    #: Where sockets and the server's status are kept; None: in a new folder, in memory.
    folder: Path | None
    front_host: str  # address that the front listens on
    quiet_s: float  # so long nobody may have come before a pod that is deleted ends
    scratch: tuple[Path, ...] = ()  # folders of the pod alone (emptyDir)
    shared: tuple[Path, ...] = ()  # where it has volumes that aren't
    engines: tuple[EnginePlan, ...] = ()  # of S2
    host_mib: int = 0  # that their weights may take together
    values: tuple[Path, ...] = ()  # Secrets and ConfigMaps that its variables come from
    wake_s: float = 60.0  # an engine that takes longer to wake is given up
    nvml: str = ""  # NVIDIA's management library, where it isn't found by its name


def read(environ: Mapping[str, str]) -> Settings:
    def required(name: str, where: str) -> str:
        if not environ.get(name):
            raise BadEnvironment(f"{name} is not set: {where}")
        return environ[name]

    def field(name: str, path: str) -> str:
        return required(name, f"take it from the pod's own field {path} with the downward API")

    pool = "the autoscaler writes it into the pods of its pools"
    level = environ.get("GALAXY_SLOT_LEVEL") or "S0"
    if level not in get_args(Level):
        raise BadEnvironment(f"GALAXY_SLOT_LEVEL={level!r}: write one of {', '.join(get_args(Level))}")
    gpus = environ.get("GALAXY_SLOT_GPUS") or "0"
    if not gpus.isdecimal():
        raise BadEnvironment(f"GALAXY_SLOT_GPUS={gpus!r}: write how many GPUs the pod has")
    folder = environ.get("GALAXY_SLOT_DIR")
    ip = field("POD_IP", "status.podIP")
    quiet_s = _seconds(environ, "GALAXY_SLOT_QUIET", "30s")
    memory_mib = environ.get(names.ENV_HOST_MIB) or "0"
    if not memory_mib.isdecimal():
        raise BadEnvironment(
            f"{names.ENV_HOST_MIB}={memory_mib!r}: write how many MiB of memory the pod may have"
        )
    engines = _engines(environ, pool) if level == "S2" else ()
    return Settings(
        pod=field("POD_NAME", "metadata.name"),
        namespace=field("POD_NAMESPACE", "metadata.namespace"),
        uid=field("POD_UID", "metadata.uid"),
        ip=ip,
        pool=required("GALAXY_POOL", pool),
        zygote=required("GALAXY_ZYGOTE", f"{pool}; the package of a runtime, such as runtimes.vllm_pd"),
        agent_socket=required("GALAXY_AGENT_SOCKET", f"{pool}; the path of the node agent's socket"),
        token_file=Path(required("GALAXY_TOKEN_FILE", f"{pool}; the path of a projected token")),
        level=cast("Level", level),
        gpus=int(gpus),
        folder=Path(folder) if folder else None,
        front_host=environ.get("GALAXY_FRONT_HOST") or ("::" if ":" in ip else "0.0.0.0"),
        quiet_s=quiet_s,
        scratch=_paths(environ, names.ENV_SCRATCH),
        shared=_paths(environ, names.ENV_SHARED),
        engines=engines,
        host_mib=int(int(memory_mib) * FOR_WEIGHTS),
        values=_paths(environ, names.ENV_VALUES),
        wake_s=_seconds(environ, "GALAXY_SLOT_WAKE", "60s"),
        nvml=environ.get("GALAXY_SLOT_NVML", ""),
    )


def _seconds(environ: Mapping[str, str], name: str, default: str) -> float:
    try:
        return durations.seconds(environ.get(name) or default)
    except ValueError as error:
        raise BadEnvironment(f"{name}: {error}; write a duration such as {default}") from error


def _engines(environ: Mapping[str, str], where: str) -> tuple[EnginePlan, ...]:
    """Their variables are this process's own, by name: a value may be secret."""
    try:
        found: dict[str, Any] = json.loads(environ.get(names.ENV_ENGINES) or "{}")
        env = tuple((name, environ[name]) for name in found.get("env", ()) if name in environ)
        plans = tuple(
            EnginePlan(one["name"], tuple(one["argv"]), env, Path(one["model"])) for one in found["engines"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadEnvironment(f"{names.ENV_ENGINES} can't be read ({error!r}): {where}") from error
    if not plans:
        raise BadEnvironment(f"{names.ENV_ENGINES} names no engine: {where}")
    return plans


def _paths(environ: Mapping[str, str], name: str) -> tuple[Path, ...]:
    found = [path for path in environ.get(name, "").split(":") if path]
    for path in found:
        if not path.startswith("/") or path == "/":
            raise BadEnvironment(f"{name} has {path!r}: write absolute paths of folders, with : between them")
    return tuple(map(Path, found))
