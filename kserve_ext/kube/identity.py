"""The identity of a part for mutual TLS, out of a Secret: read anew whenever somebody renews it.

The Secret is of the type kubernetes.io/tls with the authorities in ca.crt, as cert-manager and `galaxy install
--mutual-tls` write it. One that can't be used is named in the log, and the last good one stays. With one that has
ended nobody is spoken to: the log says so each day, from long before on.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from typing import Final

from kserve_ext.kube.client import Client
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import SECRETS
from kserve_ext.rpc.mutual_tls import BadIdentity, Identity

log = logging.getLogger(__name__)

MODES: Final = ("off", "permissive", "strict")
SECRET: Final = "galaxy-mutual-tls"
DAY_S: Final = 86_400.0
#: This part of its life before its end it ought to be renewed: cert-manager does so with a third left.
LATE: Final = 1 / 6


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
        #: From when to when its certificate counts, in unix time.
        self._life: tuple[float, float] | None = None
        self._look_again: asyncio.TimerHandle | None = None
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
        self._look()
        if self.identity.client is not None:
            return
        missing = f"there is no Secret {self._secret} that can be used"
        if self.identity.strict:
            raise NoIdentity(
                f"GALAXY_MUTUAL_TLS=strict and {missing}: make it with galaxy install --mutual-tls"
            )
        log.warning("mutual TLS: %s; everything goes without TLS until there is", missing)

    async def stop(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        await self._informer.stop()

    def _look(self) -> None:
        """Whether the certificate ends soon; and again in a day."""
        wait_s = DAY_S
        if self._life is not None:
            begin, end = self._life
            late_s, left_s = (end - begin) * LATE, end - time.time()
            wait_s = min(wait_s, late_s / 2)
            if left_s < late_s:
                log.log(
                    logging.WARNING if left_s > 0 else logging.ERROR,
                    "mutual TLS: the certificate of the Secret %s %s, and from then on parts of ours refuse each "
                    "other: renew it with galaxy install --mutual-tls",
                    self._secret,
                    f"ends in {left_s / DAY_S:.1f} days" if left_s > 0 else "has ended",
                )
        self._look_again = asyncio.get_running_loop().call_later(max(1.0, wait_s), self._look)

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
            self._life = _life_of(parts[0])
        except (binascii.Error, BadIdentity) as error:
            log.error("mutual TLS: Secret %s: %s; the last good one stays in force", self._secret, error)
        else:
            log.info("mutual TLS: the certificate of the Secret %s is in force", self._secret)


def _life_of(certificate: bytes) -> tuple[float, float] | None:
    """None: it can't be said."""
    from cryptography import x509  # nobody else at work needs it

    try:
        found = x509.load_pem_x509_certificate(certificate)
    except ValueError:  # stricter than OpenSSL, which has taken it
        return None
    return found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
