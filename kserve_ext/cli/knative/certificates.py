"""The certificate of our parts for mutual TLS, as a Secret that `galaxy install --mutual-tls` makes and renews.

How it is made: kube/certificates.py. A Secret that somebody else has made (cert-manager) is left alone.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Final

from kserve_ext.cli.knative.kustomize import Identity
from kserve_ext.kube import certificates
from kserve_ext.kube.client import Client, NotFound
from kserve_ext.kube.identity import SECRET, name_in
from kserve_ext.kube.kinds import SECRETS

Object = dict[str, Any]
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
GALAXY: Final = "galaxy"
LIFETIME: Final = datetime.timedelta(days=365)
#: So long before its end it is renewed.
EARLY: Final = datetime.timedelta(days=90)


async def ensure(
    client: Client, namespace: str, manager: str, say: Callable[[str], None]
) -> tuple[tuple[str, Identity], ...]:
    """There is a Secret that holds for a while; `say` tells what was done. What is ours of it, for the record."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        found = await client.get(SECRETS, namespace, SECRET)
    except NotFound:
        found = None
    if found is not None and not is_ours(found):
        say(f"secret/{SECRET} is not of galaxy, and stays as it is")
        return ()
    if found is None or due(found, now):
        await client.apply(SECRETS, secret(namespace, now, found), manager, force=True)
        say(f"secret/{SECRET} {'renewed' if found else 'made'}")
    else:
        say(f"secret/{SECRET} unchanged")
    return (("v1", Identity("Secret", namespace, SECRET)),)


def is_ours(found: Object) -> bool:
    return bool((found["metadata"].get("labels") or {}).get(MANAGED_BY) == GALAXY)


def due(found: Object, now: datetime.datetime) -> bool:
    """Whether to renew it: it ends soon, or can't be read."""
    end = certificates.end_of(certificates.files_of(found).get(certificates.CERTIFICATE, b""))
    return end is None or end - now < EARLY


def secret(namespace: str, now: datetime.datetime, former: Object | None = None) -> Object:
    """With an authority and a certificate of its own; `former`: whose first authority stays trusted."""
    made = certificates.make([name_in(namespace)], now, LIFETIME, certificates.files_of(former or {}))
    labels = {"app.kubernetes.io/part-of": "kserve-galaxy", MANAGED_BY: GALAXY}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": namespace, "name": SECRET, "labels": labels},
        "type": "kubernetes.io/tls",
        "data": certificates.as_data(made),
    }
