"""The environment of a container: literal values, references to its pod, ConfigMaps and Secrets, and `$(NAME)`."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

from e2e.stack.place import NODE_IP

Object = dict[str, Any]
#: (plural, namespace, name) -> the object, or None where there is none.
Fetch = Callable[[str, str, str], Awaitable[Object | None]]
_FROM_HOST = ("PATH", "HOME", "LANG", "GALAXY_CACHE")
_REFERENCE = re.compile(r"\$\((\w+)\)|\$\$")


class BadEnvironment(Exception):
    pass


async def of_container(container: Object, pod: Object, address: str, fetch: Fetch) -> dict[str, str]:
    env = {name: os.environ[name] for name in _FROM_HOST if name in os.environ}
    env["HOSTNAME"] = pod["metadata"]["name"]
    for source in container.get("envFrom") or []:
        env.update(await _whole(source, pod["metadata"]["namespace"], fetch))
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            value = await _referred(entry["valueFrom"], container, pod, address, fetch)
            if value is None:
                continue
        else:
            value = expand(entry.get("value", ""), env)
        env[entry["name"]] = value
    return env


def expand(text: str, env: dict[str, str]) -> str:
    """As in values of variables, command and args."""
    return _REFERENCE.sub(lambda found: env.get(found[1], found[0]) if found[1] else "$", text)


async def _whole(source: Object, namespace: str, fetch: Fetch) -> dict[str, str]:
    for key, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
        if reference := source.get(key):
            found = await fetch(plural, namespace, reference["name"])
            if found is None and not reference.get("optional"):
                raise BadEnvironment(f"{plural}/{reference['name']} not found")
            data = (found or {}).get("data") or {}
            return {name: _decoded(plural, value) for name, value in data.items()}
    raise BadEnvironment(f"envFrom {source}: unknown source")


async def _referred(source: Object, container: Object, pod: Object, address: str, fetch: Fetch) -> str | None:
    if named := source.get("fieldRef"):
        return field(named["fieldPath"], pod, address)
    if resource := source.get("resourceFieldRef"):
        kind, _, name = resource["resource"].partition(".")
        return str(container.get("resources", {}).get(kind, {}).get(name, "0"))
    for key, plural in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if reference := source.get(key):
            found = await fetch(plural, pod["metadata"]["namespace"], reference["name"])
            data = (found or {}).get("data") or {}
            if reference["key"] in data:
                return _decoded(plural, data[reference["key"]])
            if reference.get("optional"):
                return None
            raise BadEnvironment(f"{plural}/{reference['name']} has no key {reference['key']!r}")
    raise BadEnvironment(f"valueFrom {source}: unknown source")


def _decoded(plural: str, value: str) -> str:
    return base64.b64decode(value).decode() if plural == "secrets" else value


def field(path: str, pod: Object, address: str) -> str:
    """Raises BadEnvironment."""
    metadata, spec = pod["metadata"], pod["spec"]
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": address,
        "status.podIPs": address,
        "status.hostIP": NODE_IP,
    }
    if path in known:
        return str(known[path])
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str((metadata.get(found[1]) or {}).get(found[2], ""))
    raise BadEnvironment(f"fieldPath {path!r} is not supported")
