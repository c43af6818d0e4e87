"""The trusted issuers of JWTs, with their keys and algorithms.

All keys come from files that the operator names, never from a token. A key file is read again when it changes, so that
keys can be replaced without a restart.
"""

import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from cellexport.environment import SettingError

SETTING = "CELLEXPORT_TRUSTED_ISSUERS"
# The families of signature algorithms. All algorithms of one issuer are of one family: if HMAC were mixed with another
# family, an attacker could sign with a public key.
_FAMILIES = (
    frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    frozenset({"ES256", "ES384", "ES512"}),
    frozenset({"EdDSA"}),
    frozenset({"HS256"}),
)
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP", "HS": "oct"}
_RSA_BITS = range(2048, 8193)
_LARGEST_EXPONENT = 2**32
# The shortest HMAC key and the longest key file, in bytes.
_SHORTEST_HMAC_KEY = 32
_FILE_LIMIT = 256 * 1024

_log = logging.getLogger(__name__)


class KeyFileError(Exception):
    """Raised when a key file can't be used. The text gives the reason, and contains no key."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies the signatures of one algorithm. `kid` is the key's name in the JWK set."""

    kid: str | None
    jwk: PyJWK

    def __repr__(self) -> str:
        return f"Key({self.kid!r})"


class Issuer:
    """A trusted issuer of JWTs.

    Args:
        url: the exact `iss` of its tokens.
        file: a JWK set with its keys.

    Raises:
        KeyFileError: if the file can't be used.
    """

    def __init__(self, url: str, algorithms: Sequence[str], file: Path) -> None:
        self.url = url
        self.algorithms = tuple(algorithms)
        self._file = file
        self._stamp = _stamp(file)
        self._keys = _read(file, self.algorithms)
        if not self._keys:
            raise KeyFileError(f"{file} has no key for {' or '.join(algorithms)}.")

    def key(self, algorithm: str, kid: str | None) -> PyJWK | None:
        """Return the key for the algorithm with that `kid`, or the only key for it if `kid` is None.

        Return None if no key fits, or several.
        """
        fitting = [key for key in self._keys if key.jwk.algorithm_name == algorithm]
        if kid is not None:
            fitting = [key for key in fitting if key.kid == kid]
        return fitting[0].jwk if len(fitting) == 1 else None

    @property
    def keys(self) -> Sequence[Key]:
        return tuple(self._keys)

    def refresh(self) -> bool:
        """Read the keys again if their file has changed. Return whether they were replaced.

        An invalid file leaves the previous keys in place. A valid file may hold no key.
        """
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._keys = _read(self._file, self.algorithms)
        except KeyFileError as error:
            _log.error(
                "issuer key file is invalid; keeping the previous keys", extra={"issuer": self.url, "error": str(error)}
            )
            return False
        _log.info("issuer keys reloaded", extra={"issuer": self.url, "keys": len(self._keys)})
        return True


def read_issuers(path: Path) -> dict[str, Issuer]:
    """Return the issuers in a TOML file, by URL.

    Raises:
        SettingError: if the file can't be used.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SettingError(f"{SETTING}: {path} can't be read ({why}).") from error
    tables = content.get("issuer")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or len(content) != 1:
        raise SettingError(f"{SETTING}: {path} must consist of [[issuer]] tables.")
    issuers: dict[str, Issuer] = {}
    for table in tables:
        issuer = _issuer(path, table)
        if issuer.url in issuers:
            raise SettingError(f"{SETTING}: {path} has {issuer.url} twice.")
        issuers[issuer.url] = issuer
    return issuers


def _issuer(path: Path, table: Mapping[str, Any]) -> Issuer:
    if table.keys() != {"url", "algorithms", "jwks"}:
        raise SettingError(f"{SETTING}: {path}: an [[issuer]] needs url, algorithms and jwks, and nothing else.")
    url, algorithms, jwks = table["url"], table["algorithms"], table["jwks"]
    if not isinstance(url, str) or not url.isprintable() or not url or " " in url:
        raise SettingError(f"{SETTING}: {path}: url must be a text without blanks.")
    if not _are_algorithms(algorithms):
        families = "; ".join(", ".join(sorted(family)) for family in _FAMILIES)
        raise SettingError(f"{SETTING}: {path}: algorithms of {url} must be of one of these families: {families}.")
    if not isinstance(jwks, str):
        raise SettingError(f"{SETTING}: {path}: jwks of {url} must name a file.")
    try:
        return Issuer(url, algorithms, path.parent / jwks)
    except KeyFileError as error:
        raise SettingError(f"{SETTING}: {error}") from error


def _are_algorithms(value: object) -> bool:
    """Return whether the value is a list of algorithms of one family."""
    names = value if isinstance(value, list) else []
    return bool(names) and any(all(isinstance(name, str) and name in family for name in names) for family in _FAMILIES)


def _stamp(file: Path) -> tuple[int, ...]:
    """Return a value that changes when the file changes. It is empty for a missing file."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(file: Path, algorithms: Sequence[str]) -> list[Key]:
    if not file.is_file():
        raise KeyFileError(f"{file} can't be read: it is not a file.")
    try:
        with file.open("rb") as opened:
            data = opened.read(_FILE_LIMIT + 1)
        if len(data) > _FILE_LIMIT:
            raise KeyFileError(f"{file} is longer than {_FILE_LIMIT} bytes.")
        content = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise KeyFileError(f"{file} can't be read as JSON ({type(error).__name__}).") from error
    jwks = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(jwks, list) or not all(isinstance(jwk, dict) for jwk in jwks):
        raise KeyFileError(f"{file} is not a JWK set: an object with a list named keys.")
    found = [key for jwk in jwks for key in _keys(file, jwk, algorithms)]
    names = [(key.kid, key.jwk.algorithm_name) for key in found]
    if len(set(names)) != len(names):
        raise KeyFileError(f"{file} has two keys with the same kid, or several keys without a kid.")
    return found


def _keys(file: Path, jwk: dict[str, Any], algorithms: Sequence[str]) -> list[Key]:
    """Return the key of a JWK once for each algorithm that it may verify; nothing if the key is for another use."""
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list):
        raise KeyFileError(f"{file}: key_ops must be a list.")
    uses = jwk.get("use", "sig") == "sig" and "verify" in operations
    fitting = [name for name in algorithms if _KEY_TYPES[name[:2]] == jwk.get("kty") and jwk.get("alg", name) == name]
    # Each algorithm of the family ES needs its own curve.
    fitting = [name for name in fitting if name[:2] != "ES" or _CURVES[name] == jwk.get("crv")]
    if not uses or not fitting:
        return []
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise KeyFileError(f"{file}: a kid must be a text.")
    if "d" in jwk:
        raise KeyFileError(f"{file}: the key {kid!r} is a private key: only the issuer may have it.")
    try:
        keys = [Key(kid, PyJWK(jwk, name)) for name in fitting]
    except (PyJWTError, ValueError, TypeError, KeyError) as error:
        # Don't repeat the text of the library's error: it may contain the key.
        raise KeyFileError(f"{file}: the key {kid!r} is damaged.") from error
    if not all(_is_strong(key.jwk.key) for key in keys):
        raise KeyFileError(f"{file}: the key {kid!r} is too short, or longer than any key in use.")
    return keys


_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


def _is_strong(key: Any) -> bool:
    if isinstance(key, bytes):
        return len(key) >= _SHORTEST_HMAC_KEY
    if isinstance(key, RSAPublicKey):
        return key.key_size in _RSA_BITS and key.public_numbers().e < _LARGEST_EXPONENT
    return True
