"""Certificates to test with, issued by authorities that exist for one test."""

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NAMES = ("localhost", "127.0.0.1")


@dataclass
class Identity:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path

    def replace(self, other: "Identity") -> None:
        """Replace both files by another identity's, like a renewal: the certificate, then the key, each atomically."""
        for mine, fresh in ((self.certificate, other.certificate), (self.key, other.key)):
            copy = mine.with_suffix(".new")
            copy.write_bytes(fresh.read_bytes())
            copy.replace(mine)


class Authority:
    """A certificate authority that issues certificates into a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.file = directory / f"{name}.pem"
        certificate = _builder(self._name, self._name, self._key, days=30)
        signed = certificate.add_extension(x509.BasicConstraints(True, None), critical=True)
        self.file.write_bytes(signed.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, *names: str, days: int = 30) -> Identity:
        """Issue a certificate.

        Args:
            names: host names and IP addresses; this machine's if none are given.
            days: the lifetime from now; negative makes an expired certificate.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self._name, key, days=days)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general(host) for host in names or NAMES]), critical=False
        )
        identity = Identity(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        identity.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(os.open(identity.key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(private)
        return identity

    def context(self, client: Identity | None = None) -> ssl.SSLContext:
        """Return the TLS context of a client that trusts this authority and presents the identity, if one is given."""
        context = ssl.create_default_context(cafile=self.file)
        if client:
            context.load_cert_chain(client.certificate, client.key)
        return context


def common_name(certificate: object) -> str:
    """Return the common name of a certificate in the form of `ssl.SSLSocket.getpeercert`."""
    assert isinstance(certificate, dict)
    return str(certificate["subject"][0][0][1])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int
) -> x509.CertificateBuilder:
    end = datetime.now(UTC) + timedelta(days=days)
    return x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(), end - timedelta(days=60), end
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
