"""Knative's system-internal-tls: the activator's certificate, and connections to pods that only the right ones take.

The certificate is the Secret routing-serving-certs, whom to trust says its ca.crt and every ConfigMap with the label
of trust bundles. Both are watched, and what changes counts from the next handshake on; what can't be used is named in
the log and leaves the last good one. A pod must show the name kn-user-NAMESPACE. TLS 1.3 and nothing less. In
Knative: pkg/activator/certificate.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from kserve_ext.kube.client import Client
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import CONFIG_MAPS, SECRETS
from kserve_ext.rpc.mutual_tls import load_pair

log = logging.getLogger(__name__)

SECRET: Final = "routing-serving-certs"
TRUST_BUNDLE: Final = "networking.knative.dev/trust-bundle"
#: Where pods and their Services listen with TLS.
POD_PORT = 8112
SERVICE_PORT = 443
#: Far more than there can be connections in the making.
MOST_ADDRESSES = 16_384
_SERVICE_PLAIN: Final = "80"
_HTTP1: Final = ["http/1.1"]
_HTTP2: Final = ["h2"]


class NoCertificate(Exception):
    """There is nothing to serve TLS with."""


def enabled(config_network: Mapping[str, str]) -> bool:
    return config_network.get("system-internal-tls", "").lower() == "enabled"


class InternalTls:
    def __init__(self, client: Client, namespace: str) -> None:
        self._secret = Informer(
            client,
            SECRETS,
            namespace,
            fields=f"metadata.name={SECRET}",
            on_change=lambda old, new: self._load(),
        )
        self._bundles = Informer(
            client, CONFIG_MAPS, namespace, labels=TRUST_BUNDLE, on_change=lambda old, new: self._load()
        )
        #: What the listener is made with; each handshake is handed the context of the time.
        self.listener = _server_context()
        self.listener.sni_callback = self._present
        self._serving: ssl.SSLContext | None = None
        self._to_pods = _client_context(_HTTP1, [])
        self._to_pods2 = _client_context(_HTTP2, [])
        #: Of the addresses that were asked for last; one is connected to right after it was.
        self._namespaces: OrderedDict[str, str] = OrderedDict()

    async def start(self) -> None:
        """Returns with a certificate, or raises NoCertificate."""
        self._secret.start()
        self._bundles.start()
        await asyncio.gather(self._secret.synced.wait(), self._bundles.synced.wait())
        if self._serving is None:
            raise NoCertificate(
                f"system-internal-tls is enabled and the Secret {SECRET} has no usable certificate: "
                "wait for Knative's controller to write it, or disable system-internal-tls in config-network"
            )

    async def stop(self) -> None:
        await self._secret.stop()
        await self._bundles.stop()

    # --- connections to pods

    def address(self, namespace: str, addr: str) -> str:
        """Where the same pod, or Service, listens with TLS."""
        host, _, port = addr.rpartition(":")
        secure = f"{host}:{SERVICE_PORT if port == _SERVICE_PLAIN else POD_PORT}"
        self._namespaces[secure] = namespace
        self._namespaces.move_to_end(secure)
        if len(self._namespaces) > MOST_ADDRESSES:
            self._namespaces.popitem(last=False)
        return secure

    def http1(self, addr: str) -> tuple[ssl.SSLContext, str]:
        return self._to_pods, self._name(addr)

    def http2(self, addr: str) -> tuple[ssl.SSLContext, str]:
        return self._to_pods2, self._name(addr)

    def _name(self, addr: str) -> str:
        return f"kn-user-{self._namespaces.get(addr, '').lower()}"

    # --- inside

    def _present(self, handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._serving is not None:
            handshake.context = self._serving

    def _load(self) -> None:
        data = next((secret.get("data") or {} for secret in self._secret.objects.values()), {})
        authorities = []
        try:
            certificate, key = _decoded(data, "tls.crt"), _decoded(data, "tls.key")
            if _decoded(data, "ca.crt"):
                authorities.append((SECRET, _decoded(data, "ca.crt").decode()))
            if certificate and key:
                context = _server_context()
                load_pair(context, certificate, key)
                self._serving = context
        except (ssl.SSLError, binascii.Error, ValueError) as error:
            log.warning("Secret %s can't be used, the last good certificate is: %s", SECRET, error)
        for (_, name), bundle in sorted(self._bundles.objects.items()):
            authorities += [(name, pem) for pem in (bundle.get("data") or {}).values()]
        self._to_pods = _client_context(_HTTP1, authorities)
        self._to_pods2 = _client_context(_HTTP2, authorities)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(_HTTP2 + _HTTP1)
    return context


def _client_context(protocols: list[str], authorities: list[tuple[str, str]]) -> ssl.SSLContext:
    """`authorities`: where each comes from, and its certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(protocols)
    for origin, pem in authorities:
        try:
            context.load_verify_locations(cadata=pem)
        except (ssl.SSLError, ValueError) as error:
            log.warning("certificates to trust in %s can't be used: %s", origin, error)
    return context


def _decoded(data: Mapping[str, Any], name: str) -> bytes:
    return base64.b64decode(data.get(name) or "", validate=True)
