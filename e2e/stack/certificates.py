"""Certificates: an authority that signs, the stack's own, the key of service accounts, and kubeconfigs."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from e2e.stack.place import ADMIN_TOKEN, API_SERVER, NODE_IP, Place

_LIFETIME = datetime.timedelta(days=30)


class Pair(NamedTuple):
    """PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Its key lives as long as it does; nobody stores it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self._key, x509.BasicConstraints(True, None))

    def issue(self, subject: str, names: Iterable[str]) -> Pair:
        """For names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Pair(self._sign(subject, key, x509.SubjectAlternativeName(map(_name, names))), _pem(key))

    def _sign(self, subject: str, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + _LIFETIME)
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def make(place: Place) -> None:
    folder = place.certificates
    folder.mkdir(parents=True)
    authority = Authority("e2e-ca")
    server = authority.issue(
        "kube-apiserver", ["127.0.0.1", NODE_IP, "10.96.0.1", "localhost", "kubernetes.default.svc"]
    )
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "apiserver.crt").write_bytes(server.certificate)
    _write_key(folder / "apiserver.key", server.key)
    _write_key(folder / "accounts.key", _pem(accounts))
    (folder / "accounts.pub").write_bytes(
        accounts.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (folder / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n', encoding="ascii")
    write_kubeconfig(place, place.kubeconfig, ADMIN_TOKEN)


def write_kubeconfig(place: Place, path: Path, token: str, namespace: str = "default") -> None:
    """JSON is YAML."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "e2e",
        "clusters": [
            {
                "name": "e2e",
                "cluster": {
                    "server": API_SERVER,
                    "certificate-authority": str(place.certificates / "ca.crt"),
                },
            }
        ],
        "users": [{"name": "e2e", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e", "namespace": namespace}}],
    }
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write_key(path: Path, key: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key)
