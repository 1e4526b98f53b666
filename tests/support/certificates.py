"""Certificates for tests: authorities, and what they sign for this machine."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, as PEM."""

    key: bytes
    certificate: bytes

    def write(self, folder: Path) -> dict[str, Path]:
        """Write `server.key` and `server.pem`, and return the settings that name them."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"tls_key": folder / "server.key", "tls_certificate": folder / "server.pem"}
        replace(paths["tls_key"], self.key)
        replace(paths["tls_certificate"], self.certificate)
        return paths


class Authority:
    """An authority of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self._key.public_key(), authority=True)

    def issue(self, name: str = "server") -> Issued:
        """Return a new certificate for localhost and 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Issued(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            self._sign(name, key.public_key(), authority=False),
        )

    def _sign(self, name: str, public: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
        now = dt.datetime.now(dt.UTC)
        alternatives = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self._name))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of the old one, at once."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
