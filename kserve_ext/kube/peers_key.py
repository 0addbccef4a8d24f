"""The key by which parts of ours in a Knative cluster know each other, out of the Secret galaxy-peers.

The manifests create the Secret empty; the first activator that finds it so writes a random key, and everybody reads
what was written first. Its role lets it get and patch this one Secret and no other; a node agent's lets it get it.
Without the Secret, or without the role, there is no key: then nobody is spoken to. An API server that doesn't answer
is waited for, as it is by everything that comes after: its moment must not cost a process's whole life.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import secrets
from typing import Any, Final

from kserve_ext.kube.client import Client, Conflict, KubeError, NotFound, Unavailable
from kserve_ext.kube.kinds import SECRETS

log = logging.getLogger(__name__)

SECRET: Final = "galaxy-peers"
FIELD: Final = "key"
LEAST_BYTES: Final = 16
PATIENCE_S: Final = 60.0
AGAIN_S: Final = 1.0
_BY_POSITION: Final = "slots are divided by position until the next start"
#: An installation brings the autoscaler and the nodes' agents before the activators, and the Secret with these.
INSTALL_S: Final = 300.0


class NoKey(Exception):
    """There is none that can be used; the message says why, and what to do."""

    def __init__(self, message: str, *, yet: bool = False) -> None:
        """`yet`: nothing is wrong but that nobody has made it so far."""
        super().__init__(message)
        self.yet = yet

    def level(self, waited_s: float) -> int:
        """Of its line in the log, for who has waited for so long."""
        return logging.INFO if self.yet and waited_s < INSTALL_S else logging.WARNING


async def shared_key(client: Client, namespace: str) -> bytes | None:
    """An activator's; None, with the reason in the log: there is none."""
    try:
        return await peers_key(client, namespace)
    except NoKey as error:
        log.warning("no key for talking to other activators: %s: %s", error, _BY_POSITION)
        return None


async def awaited_key(
    client: Client, namespace: str, meanwhile: str, *, make: bool = True, again_s: float = AGAIN_S
) -> bytes:
    """Once there is one. `meanwhile` begins the line in the log, which is said again only when it has changed."""
    loop = asyncio.get_running_loop()
    since, said = loop.time(), (0, "")
    while True:
        try:
            return await peers_key(client, namespace, make=make)
        except NoKey as error:
            now = error.level(loop.time() - since), str(error)
            if now != said:
                said = now
                log.log(now[0], "%s: %s", meanwhile, error)
            await asyncio.sleep(again_s)


async def peers_key(client: Client, namespace: str, *, make: bool = True) -> bytes:
    """`make`: where there is none, write one; else wait for whoever does. Raises NoKey."""
    where = f"Secret {namespace}/{SECRET}"
    try:
        secret = await _read(client, namespace, make)
    except NotFound:
        raise NoKey(
            f"there is no {where} yet; galaxy install brings it with the activators", yet=True
        ) from None
    except KubeError as error:
        raise NoKey(f"{where} can't be had ({error}); galaxy install brings it and who may read it") from None
    if not (secret.get("data") or {}).get(FIELD):
        raise NoKey(f"{where} has no {FIELD} yet, which the first activator of ours writes", yet=True)
    try:
        key = base64.b64decode(secret["data"][FIELD], validate=True)
    except (KeyError, binascii.Error, ValueError) as error:
        raise NoKey(
            f"{where}: {FIELD} can't be read ({error}); delete it there, and it is made anew"
        ) from None
    if len(key) < LEAST_BYTES:
        raise NoKey(
            f"{where}: {FIELD} has {len(key)} bytes, at least {LEAST_BYTES} are needed; delete it there, and it is "
            "made anew"
        )
    return key


async def _read(client: Client, namespace: str, make: bool) -> dict[str, Any]:
    """The Secret, with a key."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        try:
            secret = await client.get(SECRETS, namespace, SECRET)
            if (secret.get("data") or {}).get(FIELD):
                return secret
            if make:
                return await _write(client, namespace, secret)
            if loop.time() > deadline:
                return secret
        except Unavailable:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(AGAIN_S)


async def _write(client: Client, namespace: str, secret: dict[str, Any]) -> dict[str, Any]:
    """A key, unless somebody else has been faster."""
    text = base64.b64encode(secrets.token_bytes(32)).decode()
    version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
    try:
        return await client.patch(SECRETS, namespace, SECRET, {"metadata": version, "data": {FIELD: text}})
    except Conflict:
        return await client.get(SECRETS, namespace, SECRET)
