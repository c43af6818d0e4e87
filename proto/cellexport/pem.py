"""Certificates and keys in PEM files: checked before use, and read again when they change."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cellexport.environment import Environment, SettingError

# The largest PEM file, in bytes.
_LIMIT = 1024 * 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pem:
    """The content of PEM files; empty for a file that is not set. The key is hidden in its repr."""

    chain: bytes = b""
    key: bytes = field(default=b"", repr=False)
    authorities: bytes = b""


@dataclass(frozen=True, slots=True)
class PemFile:
    """A PEM file, and the variable that names it."""

    variable: str
    path: Path

    @classmethod
    def read(cls, environment: Environment, variable: str) -> "PemFile | None":
        """Return the file that a variable names, or None if the variable is not set."""
        path = environment.text(variable, "")
        return cls(variable, Path(path).absolute()) if path else None

    def load(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                content = file.read(_LIMIT + 1)
        except OSError as error:
            # Don't show the value of a variable for a key: by mistake it may be the key itself, not a path.
            what = "the file" if self.variable.endswith("_KEY") else self.path
            raise SettingError(f"{self.variable}: {what} can't be read ({error.strerror}).") from error
        if len(content) > _LIMIT:
            raise SettingError(f"{self.variable}: {self.path} is larger than a certificate or a key ever is.")
        return content

    def stamp(self) -> tuple[int, ...]:
        """Return a value that changes when the file changes."""
        try:
            stat = self.path.stat()
        except OSError:
            return ()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@dataclass(frozen=True, slots=True)
class PemFiles:
    """A certificate with its chain, its key, and the authorities that must have issued the other side's certificate."""

    chain: PemFile | None = None
    key: PemFile | None = None
    authorities: PemFile | None = None

    def __iter__(self) -> Iterator[PemFile]:
        return (file for file in (self.chain, self.key, self.authorities) if file is not None)

    def require_pair(self, chain: str, key: str) -> None:
        """Raise `SettingError` if only one of certificate and key is set. The arguments name the two variables."""
        if (self.chain is None) != (self.key is None):
            missing, given = (chain, key) if self.chain is None else (key, chain)
            raise SettingError(f"{missing}: is not set, but {given} is. Set both, or none.")

    def load(self) -> Pem:
        """Read the files. Raise `SettingError` if one can't be read or they don't match; the text contains no key."""
        chain = self.chain.load() if self.chain else b""
        key = self.key.load() if self.key else b""
        authorities = self.authorities.load() if self.authorities else b""
        if self.authorities:
            _certificates(self.authorities, authorities)
        if self.chain and self.key:
            leaf = _certificates(self.chain, chain)[0]
            if leaf.public_key() != _private_key(self.key, key).public_key():
                raise SettingError(
                    f"{self.key.variable}: is not the key to the first certificate in {self.chain.path}."
                )
        return Pem(chain, key, authorities)

    def stamp(self) -> tuple[tuple[int, ...], ...]:
        return tuple(file.stamp() for file in self)


class PemReloader:
    """The latest valid content of PEM files. Any thread may use it.

    Raises:
        SettingError: if the content is invalid at the start.
    """

    def __init__(self, files: PemFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        # Take the stamp before reading: then `renewed` notices a change of the files during the read.
        self._stamp = files.stamp()
        self.latest = files.load()

    def renewed(self) -> Pem | None:
        """Return the content if it changed since the last call, else None. Log invalid content once, and ignore it."""
        with self._lock:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                fresh = self._files.load()
            except SettingError as error:
                _log.warning("new TLS files are invalid; keeping the previous ones", extra={"why": str(error)})
                return None
            if fresh == self.latest:
                return None
            self.latest = fresh
            _log.info("TLS files reloaded", extra={"files": ", ".join(str(file.path) for file in self._files)})
            return fresh


def _certificates(file: PemFile, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise SettingError(f"{file.variable}: {file.path} holds no certificate in PEM.") from error


def _private_key(file: PemFile, content: bytes) -> EllipticCurvePrivateKey | RSAPrivateKey:
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        # A TypeError means that the key is encrypted.
        raise SettingError(f"{file.variable}: {file.path} holds no unencrypted private key in PEM.") from error
    if not isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey):
        raise SettingError(f"{file.variable}: {file.path} must be an RSA or an elliptic-curve key.")
    return key
