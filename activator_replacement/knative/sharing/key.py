"""The key by which activators of ours know each other, out of the Secret galaxy-peers.

The manifests create the Secret empty; the first activator that finds it so writes a random key, and everybody reads
what was written first. Its role lets it get and patch this one Secret and no other. Without the Secret, or without
the role, there is no key: then slots are divided by position only, as by Knative's own. An API server that doesn't
answer is waited for, as it is by everything that comes after: its moment must not cost a process's whole life.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import secrets
from typing import Any, Final

from kserve_ext.kube.client import Client, Conflict, KubeError, Unavailable
from kserve_ext.kube.kinds import SECRETS

log = logging.getLogger(__name__)

SECRET: Final = "galaxy-peers"
FIELD: Final = "key"
LEAST_BYTES: Final = 16
PATIENCE_S: Final = 60.0
AGAIN_S: Final = 1.0
_WITHOUT: Final = "slots are divided by position until the next start"


async def shared_key(client: Client, namespace: str) -> bytes | None:
    """The key; None, with the reason in the log: there is none."""
    try:
        secret = await _read(client, namespace)
    except KubeError as error:
        log.warning("no key for talking to other activators (%s): %s", error, _WITHOUT)
        return None
    try:
        key = base64.b64decode(secret["data"][FIELD], validate=True)
    except (KeyError, binascii.Error, ValueError) as error:
        log.warning("Secret %s/%s: %s can't be read (%s): %s", namespace, SECRET, FIELD, error, _WITHOUT)
        return None
    if len(key) < LEAST_BYTES:
        log.warning(
            "Secret %s/%s: %s has %d bytes, at least %d are needed; delete it there, and it is made anew: %s",
            namespace,
            SECRET,
            FIELD,
            len(key),
            LEAST_BYTES,
            _WITHOUT,
        )
        return None
    return key


async def _read(client: Client, namespace: str) -> dict[str, Any]:
    """The Secret, with a key."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        try:
            secret = await client.get(SECRETS, namespace, SECRET)
            if not (secret.get("data") or {}).get(FIELD):
                secret = await _write(client, namespace, secret)
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
