"""The certificate of our parts for mutual TLS, as a Secret that `galaxy install --mutual-tls` makes and renews.

An authority is made, signs one certificate, and its key is thrown away: nobody can sign another. The former authority
stays trusted until the next renewal, so that parts which have not read the new Secret yet are understood. A Secret
that somebody else has made (cert-manager) is left alone.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kserve_ext.cli.knative.kustomize import Identity
from kserve_ext.kube.client import Client, NotFound
from kserve_ext.kube.identity import SECRET, name_in
from kserve_ext.kube.kinds import SECRETS

Object = dict[str, Any]
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
GALAXY: Final = "galaxy"
LIFETIME: Final = datetime.timedelta(days=365)
#: So long before its end it is renewed.
EARLY: Final = datetime.timedelta(days=90)
_SKEW: Final = datetime.timedelta(hours=1)


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
    try:
        pem = base64.b64decode((found.get("data") or {})["tls.crt"])
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc - now < EARLY
    except (KeyError, ValueError):
        return True


def secret(namespace: str, now: datetime.datetime, former: Object | None = None) -> Object:
    """With an authority and a certificate of its own; `former`: whose first authority stays trusted."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"kserve-galaxy {now:%Y-%m-%d %H:%M}")])
    name = name_in(namespace)
    signed_by_itself = (
        _builder(authority, authority, authority_key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, authority, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    authorities = _pem(signed_by_itself) + _first_authority(former)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    data = {"ca.crt": authorities, "tls.crt": _pem(certificate), "tls.key": private}
    labels = {"app.kubernetes.io/part-of": "kserve-galaxy", MANAGED_BY: GALAXY}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": namespace, "name": SECRET, "labels": labels},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(content).decode() for name, content in data.items()},
    }


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _first_authority(former: Object | None) -> bytes:
    end = b"-----END CERTIFICATE-----\n"
    try:
        pem = base64.b64decode(((former or {}).get("data") or {})["ca.crt"])
    except (KeyError, ValueError):
        return b""
    first, found, _ = pem.partition(end)
    return first + found


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
