"""How to reach the API server and as whom: from inside a pod, or from a kubeconfig file.

In a pod the service account's files are read here, since kubernetes' own loader costs 20 MB of memory in every
activator; the kubelet replaces the token about once an hour, so it is read again every minute. Kubeconfig files are
the official package's business, with everything it knows: client certificates, exec plugins, proxies.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KEEP_TOKEN_S = 60.0


class AccessError(Exception):
    """There is no usable configuration; the message says what was looked at."""


class Endpoint(NamedTuple):
    url: str  # without a slash at the end
    tls: ssl.SSLContext | None = None
    server_name: str = ""  # the name in the server's certificate, where it isn't the host's
    proxy: str = ""


class Access:
    """One API server, and the Authorization header of now."""

    def __init__(self, endpoint: Endpoint, read_header: Callable[[], str] = str) -> None:
        self.endpoint = endpoint
        self._read_header = read_header
        self._header = ""
        self._read_at = -KEEP_TOKEN_S
        self._lock = asyncio.Lock()

    async def header(self, refused: str | None = None) -> str:
        """The Authorization header, "" = none. `refused`: the header that the server didn't take.

        Read off the loop: an exec plugin is a process to wait for.
        """
        async with self._lock:
            now = time.monotonic()
            if now - self._read_at < KEEP_TOKEN_S and self._header != refused:
                return self._header
            try:
                self._header = await asyncio.to_thread(self._read_header)
            except Exception as error:  # a file that is away for a moment, a plugin with whatever it raises
                if not self._header:
                    raise AccessError(f"no credentials: {error}") from error
            self._read_at = now
            return self._header


def from_environment(environ: Mapping[str, str] = os.environ) -> Access:
    """KUBECONFIG where it is set, else the pod's service account, else the user's own kubeconfig."""
    if environ.get("KUBECONFIG"):
        return from_kubeconfig(environ["KUBECONFIG"])
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return from_pod(environ)
    return from_kubeconfig("~/.kube/config")


def from_pod(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Access:
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    if ":" in host:
        host = f"[{host}]"

    def header() -> str:
        return "Bearer " + (folder / "token").read_text().strip()

    try:
        tls = tls_context(str(folder / "ca.crt"))
        header()
    except (OSError, ssl.SSLError) as error:
        why = f"this looks like a pod, but {folder} is of no use: {error}"
        raise AccessError(f"{why}. Set automountServiceAccountToken: true") from error
    return Access(Endpoint(f"https://{host}:{port}", tls), header)


def from_kubeconfig(files: str, context: str = "") -> Access:
    """`files`: as in KUBECONFIG, one or more paths joined by ":"; `context`: another than the current one."""
    from kubernetes.client import Configuration
    from kubernetes.config import load_kube_config

    configuration = Configuration()
    try:
        load_kube_config(files, context or None, configuration, persist_config=False)
        tls = None
        if configuration.host.startswith("https"):
            tls = tls_context(configuration.ssl_ca_cert, verify=configuration.verify_ssl)
            if configuration.cert_file:
                tls.load_cert_chain(configuration.cert_file, configuration.key_file)
    except Exception as error:  # the loader says "not a kubeconfig" with whatever went wrong inside it
        raise AccessError(f"kubeconfig {files}: {error}") from error
    endpoint = Endpoint(
        configuration.host.rstrip("/"), tls, configuration.tls_server_name or "", configuration.proxy or ""
    )

    def header() -> str:
        return configuration.get_api_key_with_prefix("BearerToken") or ""

    return Access(endpoint, header)


def tls_context(ca_file: str | None, *, verify: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    # Python 3.13 checks strictly by default, and many clusters' own CAs lack the extensions that asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
