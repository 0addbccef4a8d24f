"""The identity of a part for mutual TLS, out of a Secret: read anew whenever somebody renews it.

The Secret is of the type kubernetes.io/tls with the authorities in ca.crt, as cert-manager and `galaxy install
--mutual-tls` write it. One that can't be used is named in the log, and the last good one stays.
"""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Final

from kserve_ext.kube.client import Client
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import SECRETS
from kserve_ext.rpc.mutual_tls import BadIdentity, Identity

log = logging.getLogger(__name__)

MODES: Final = ("off", "permissive", "strict")
SECRET: Final = "galaxy-mutual-tls"


def name_in(namespace: str) -> str:
    """What certificates of the parts in this namespace are of."""
    return f"kserve-galaxy.{namespace}"


class NoIdentity(Exception):
    """Mutual TLS is strict, and there is nothing to show."""


class SecretIdentity:
    """`start` once, `stop` once; `identity` from the beginning."""

    def __init__(self, client: Client, namespace: str, mode: str, secret: str = SECRET) -> None:
        self.identity = Identity(name_in(namespace), strict=mode == "strict")
        self._secret = secret
        self._informer = Informer(
            client,
            SECRETS,
            namespace,
            fields=f"metadata.name={secret}",
            on_change=lambda old, new: self._load((new or {}).get("data") or {}),
        )

    async def start(self) -> None:
        """Returns when the Secret has been read once. Raises NoIdentity."""
        self._informer.start()
        await self._informer.synced.wait()
        if self.identity.client is not None:
            return
        missing = f"there is no Secret {self._secret} that can be used"
        if self.identity.strict:
            raise NoIdentity(
                f"GALAXY_MUTUAL_TLS=strict and {missing}: make it with galaxy install --mutual-tls"
            )
        log.warning("mutual TLS: %s; everything goes without TLS until there is", missing)

    async def stop(self) -> None:
        await self._informer.stop()

    def _load(self, data: dict[str, str]) -> None:
        if not data:
            log.warning("mutual TLS: the Secret %s is gone; what it said stays in force", self._secret)
            return
        try:
            parts = [
                base64.b64decode(data.get(name) or "", validate=True)
                for name in ("tls.crt", "tls.key", "ca.crt")
            ]
            self.identity.load(*parts)
        except (binascii.Error, BadIdentity) as error:
            log.error("mutual TLS: Secret %s: %s; the last good one stays in force", self._secret, error)
        else:
            log.info("mutual TLS: the certificate of the Secret %s is in force", self._secret)
