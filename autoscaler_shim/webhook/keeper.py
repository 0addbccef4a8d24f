"""Keeps the webhook's certificate: the Secret, the authorities in the webhook configurations, and what is shown.

It looks twice a minute and carries out what trust.py says. While the API server is away, or something is missing,
what is shown stays.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Final

from autoscaler_shim.webhook.trust import LIFETIME, decide
from kserve_ext.kube import certificates
from kserve_ext.kube.certificates import AUTHORITIES, CERTIFICATE, KEY
from kserve_ext.kube.client import JSON_PATCH, Client, Conflict, Kind, KubeError, KubeObject, NotFound
from kserve_ext.kube.kinds import MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS

log = logging.getLogger(__name__)

#: The name of the Secret, of the Service and of both configurations.
NAME: Final = "galaxy-webhook"
LOOK_S: Final = 30.0
#: After a look that did not get through; after one that came second.
AGAIN_S: Final = 2.0
SOON_S: Final = 0.1


class Keeper:
    """`run` until cancelled; `show(certificate, key)` raises ssl.SSLError for what can't be shown."""

    def __init__(self, client: Client, namespace: str, show: Callable[[bytes, bytes], None]) -> None:
        self._client = client
        self._namespace = namespace
        self._show = show
        self._said = ""
        self.shown: bytes | None = None
        #: Whether the API server was last seen to trust what is shown.
        self.trusted = False

    async def run(self) -> None:
        while True:
            try:
                wait_s = 0.0 if await self.look() else LOOK_S
            except KubeError as error:
                second = isinstance(error, Conflict)
                wait_s = SOON_S if second else AGAIN_S
                if not second:
                    self._say(f"the certificate can't be looked after: {error}")
            await asyncio.sleep(wait_s)

    async def look(self) -> bool:
        """Whether to look again at once. Raises KubeError."""
        secret = await self._client.get(SECRETS, self._namespace, NAME)
        configurations = [
            (kind, found)
            for kind in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)
            if (found := await self._configuration(kind)) is not None
        ]
        files = certificates.files_of(secret)
        trusted = [_authorities(hook) for _, found in configurations for hook in found.get("webhooks") or ()]
        steps = decide(files, trusted, self.shown, datetime.datetime.now(datetime.UTC))
        if steps.renew or (steps.show and not self._can_show(files)):
            await self._renew(secret, files)
            return True
        if steps.publish:
            for kind, found in configurations:
                await self._publish(kind, found, files[AUTHORITIES])
        if configurations:
            self._said = ""
        self.trusted = bool(configurations)
        return False

    # --- inside

    def _can_show(self, files: Mapping[str, bytes]) -> bool:
        try:
            self._show(files[CERTIFICATE], files[KEY])
        except ssl.SSLError as error:
            log.error("what the Secret %s has can't be shown: %s; it is made anew", NAME, error)
            return False
        self.shown = files[CERTIFICATE]
        log.info("the certificate of the Secret %s is shown", NAME)
        return True

    async def _configuration(self, kind: Kind) -> KubeObject | None:
        try:
            return await self._client.get(kind, "", NAME)
        except NotFound:
            self._say(f"there is no {kind.kind} {NAME}: apply the component webhook again")
            return None

    async def _renew(self, secret: KubeObject, former: Mapping[str, bytes]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        made = certificates.make([f"{NAME}.{self._namespace}.svc"], now, LIFETIME, former)
        version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
        change = {"metadata": version, "data": certificates.as_data(made)}
        await self._client.patch(SECRETS, self._namespace, NAME, change)
        log.info("the Secret %s has a new certificate", NAME)

    async def _publish(self, kind: Kind, found: KubeObject, authorities: bytes) -> None:
        value = b64encode(authorities).decode()
        operations: list[KubeObject] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": found["metadata"]["resourceVersion"]}
        ]
        operations += [
            {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": value}
            for index in range(len(found.get("webhooks") or ()))
        ]
        await self._client.patch(kind, "", NAME, operations, content_type=JSON_PATCH)

    def _say(self, text: str) -> None:
        """Once, until something else is to be said."""
        if text != self._said:
            log.warning("%s", text)
            self._said = text


def _authorities(hook: KubeObject) -> bytes:
    try:
        return b64decode(hook["clientConfig"].get("caBundle") or "")
    except ValueError:
        return b""
