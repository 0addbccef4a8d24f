"""An authority for one use, and the certificate that it has signed.

The authority's key is thrown away: nobody can sign another. The former authority stays trusted until the next
renewal, so that who has not read the new files yet is understood.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITIES: Final = "ca.crt"
#: What verifiers' clocks may be behind.
_SKEW: Final = datetime.timedelta(hours=1)


def make(
    names: Sequence[str],
    now: datetime.datetime,
    lifetime: datetime.timedelta,
    former: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """PEM by file name, for these DNS names; `former`: whose first authority stays trusted."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _named(f"kserve-galaxy {now:%Y-%m-%d %H:%M:%S}")
    until = now + lifetime
    signed_by_itself = (
        _builder(authority, authority, authority_key, now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(_named(names[0]), authority, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    authorities = _pem(signed_by_itself) + _first_authority(former or {})
    return {AUTHORITIES: authorities, CERTIFICATE: _pem(certificate), KEY: private}


def files_of(secret: Mapping[str, Any]) -> dict[str, bytes]:
    """What a Secret holds; empty where it can't be read."""
    try:
        return {name: base64.b64decode(text) for name, text in (secret.get("data") or {}).items()}
    except ValueError:
        return {}


def as_data(files: Mapping[str, bytes]) -> dict[str, str]:
    """The field `data` of a Secret."""
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def end_of(certificate: bytes) -> datetime.datetime | None:
    """When it ends; None for what can't be read."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError:
        return None


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(until)
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


def _first_authority(former: Mapping[str, bytes]) -> bytes:
    first, end, _ = former.get(AUTHORITIES, b"").partition(b"-----END CERTIFICATE-----\n")
    return first + end


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
