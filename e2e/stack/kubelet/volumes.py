"""Volumes of a pod: folders that follow what Secrets, ConfigMaps, tokens and the pod's own fields say.

A hostPath and a PersistentVolume with one are folders of the stack, so that stacks don't meet. The volume that the
API server gives every pod for its ServiceAccount is left out: KUBECONFIG is in its place. Sizes and modes are
ignored, as limits and users are.

As the kubelet's are, files that follow something are links through `..data`, which names another folder as soon as
any of them has changed: all of a volume change at once, and who looks at that link sees that they have.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from e2e.stack.kubelet import environment
from e2e.stack.kubelet.mounts import BadVolume, Mount
from e2e.stack.watch import say

Object = dict[str, Any]
#: (plural, namespace, name) -> the object, or None where there is none; namespace "": of the cluster.
Fetch = Callable[[str, str, str], Awaitable[Object | None]]
#: (namespace, ServiceAccount, spec of a TokenRequest) -> its status.
RequestToken = Callable[[str, str, Object], Awaitable[Object]]
#: The kubelet itself takes up to a minute.
EVERY_S = 2.0
TOKEN_S = 3600
#: Of its life, when a token is renewed; the kubelet's.
RENEW_AT = 0.8
ACCOUNT_VOLUME = "kube-api-access-"


class Volumes:
    """`pod` may be replaced by what the API server has of it later."""

    def __init__(
        self, pod: Object, folder: Path, fetch: Fetch, request: RequestToken, host: Path, address: str
    ) -> None:
        """`folder`: of this pod; `host`: what is / to hostPath volumes."""
        self.pod = pod
        self._namespace: str = pod["metadata"]["namespace"]
        self._folder = folder
        self._fetch = fetch
        self._request = request
        self._host = host
        self._address = address
        self._volumes: dict[str, Object] = {
            volume["name"]: volume
            for volume in pod["spec"].get("volumes") or []
            if not volume["name"].startswith(ACCOUNT_VOLUME)
        }
        #: Folders that aren't the pod's own.
        self._elsewhere: dict[str, Path] = {}
        #: By its file: a token, and when it is to be renewed.
        self._tokens: dict[Path, tuple[bytes, float]] = {}

    def mounts(self, container: Object) -> list[Mount]:
        found = []
        for mount in container.get("volumeMounts") or []:
            name = mount["name"]
            if name in self._volumes:
                source = self._elsewhere.get(name, self._folder / name)
                below = source / (mount.get("subPath") or "")
                found.append(Mount(below, Path(mount["mountPath"]), bool(mount.get("readOnly"))))
        return found

    async def fill(self) -> None:
        """Raises BadVolume: the pod can't start."""
        for name, volume in self._volumes.items():
            folder = self._folder / name
            if path := volume.get("hostPath"):
                self._elsewhere[name] = self._on_host(path)
            elif claim := volume.get("persistentVolumeClaim"):
                self._elsewhere[name] = await self._claimed(claim["claimName"])
            else:
                folder.mkdir(parents=True, exist_ok=True)
                await self._written(volume, folder)

    async def follow(self) -> None:
        """For ever. What can't be read stays as it was."""
        while self._volumes:
            await asyncio.sleep(EVERY_S)
            try:
                await self.fill()
            except (BadVolume, environment.BadEnvironment, OSError, aiohttp.ClientError) as error:
                say(f"volumes in {self._folder}: {error!r}")

    # --- inside

    async def _written(self, volume: Object, folder: Path) -> None:
        """Its files, by what kind of volume it is; a kind that isn't known is not left out in silence."""
        if "emptyDir" in volume:
            return
        files: dict[str, bytes] = {}
        for kind in ("secret", "configMap", "downwardAPI"):
            if kind in volume:
                files = await self._source({kind: volume[kind]}, folder)
                break
        else:
            if "projected" not in volume:
                kinds = ", ".join(sorted(set(volume) - {"name"}))
                raise BadVolume(f"volume {volume['name']}: {kinds} is not supported by the kubelet stand-in")
            for source in volume["projected"].get("sources") or []:
                files |= await self._source(source, folder)
        publish(folder, files)

    async def _source(self, source: Object, folder: Path) -> dict[str, bytes]:
        if token := source.get("serviceAccountToken"):
            return {token["path"]: await self._token(token, folder / token["path"])}
        if fields := source.get("downwardAPI"):
            return {item["path"]: self._field(item).encode() for item in fields.get("items") or []}
        if secret := source.get("secret"):
            return await self._keys("secrets", secret.get("secretName") or secret["name"], secret)
        if config := source.get("configMap"):
            return await self._keys("configmaps", config["name"], config)
        raise BadVolume(f"a source {sorted(source)} is not supported by the kubelet stand-in")

    async def _keys(self, plural: str, name: str, source: Object) -> dict[str, bytes]:
        found = await self._fetch(plural, self._namespace, name)
        if found is None:
            if source.get("optional"):
                return {}
            raise BadVolume(f"{plural.removesuffix('s')} {self._namespace}/{name} not found")
        held = {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
        for key, value in (found.get("data") or {}).items():
            held[key] = base64.b64decode(value) if plural == "secrets" else value.encode()
        paths = {item["key"]: item["path"] for item in source.get("items") or []} or {k: k for k in held}
        for key in paths:
            if key not in held and not source.get("optional"):
                raise BadVolume(f"{plural.removesuffix('s')} {self._namespace}/{name} has no key {key!r}")
        return {path: held[key] for key, path in paths.items() if key in held}

    def _field(self, item: Object) -> str:
        path = item["fieldRef"]["fieldPath"]
        if path in ("metadata.labels", "metadata.annotations"):
            held: Mapping[str, str] = self.pod["metadata"].get(path.partition(".")[2]) or {}
            return "".join(f"{key}={json.dumps(value)}\n" for key, value in sorted(held.items()))
        return environment.field(path, self.pod, self._address)

    async def _token(self, wanted: Object, file: Path) -> bytes:
        """Bound to the pod: it ends with it."""
        former, renew_at = self._tokens.get(file, (b"", 0.0))
        if time.time() < renew_at:
            return former
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        asked: Object = {
            "expirationSeconds": wanted.get("expirationSeconds") or TOKEN_S,
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
        if wanted.get("audience"):
            asked["audiences"] = [wanted["audience"]]
        account = spec.get("serviceAccountName") or "default"
        status = await self._request(self._namespace, account, asked)
        token: bytes = status["token"].encode()
        self._tokens[file] = token, time.time() + RENEW_AT * asked["expirationSeconds"]
        return token

    def _on_host(self, volume: Object) -> Path:
        path: Path = self._host / str(volume["path"]).strip("/")
        kind = volume.get("type") or ""
        if kind == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
        there = {"Directory": path.is_dir, "File": path.is_file, "Socket": path.is_socket}.get(
            kind, path.exists
        )
        if not there():
            raise BadVolume(f"hostPath {volume['path']}: {path} is no {kind or 'file or folder'}")
        return path

    async def _claimed(self, name: str) -> Path:
        claim = await self._fetch("persistentvolumeclaims", self._namespace, name)
        bound = (claim or {}).get("spec", {}).get("volumeName")
        if not bound:
            raise BadVolume(f"persistentvolumeclaim {self._namespace}/{name} is not bound")
        found = await self._fetch("persistentvolumes", "", bound)
        path = (found or {}).get("spec", {}).get("hostPath")
        if not path:
            raise BadVolume(f"persistentvolume {bound}: only those with a hostPath are supported")
        return self._on_host(path)


def publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """All at once; nothing is done where all are as they were."""
    data = folder / "..data"
    if data.is_symlink() and _files(data.resolve()) == files:
        return
    former = [path for path in folder.iterdir() if path.name.startswith("..") and path != data]
    made = folder / f"..{time.time_ns()}"
    made.mkdir()
    for name, content in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    link = folder / "..data_tmp"
    link.symlink_to(made.name)
    link.replace(data)
    wanted = {Path(name).parts[0] for name in files}
    for path in folder.iterdir():
        if not path.name.startswith("..") and path.name not in wanted:
            path.unlink()
    for name in wanted:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    for path in former:
        shutil.rmtree(path)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
