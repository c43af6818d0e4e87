"""Tokens for tests. The server never makes any: units and identity providers issue tokens."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from jwt.exceptions import PyJWTError

from server.auth.cipher import Cipher, initial_vector, older_initial_vector
from server.auth.issuers import Issuer

# For each kind of local token: its prefix and type in today's layout, and its prefix in the layout of 2017.
LOCAL_KINDS = {
    "resident": ("AR~", "0", "AA~"),
    "visitor": ("AV~", "1", "AL~"),
    "unit-user": ("AU~", "6", "AU~"),
    "password-change": ("AP~", "7", "AP~"),
    "resident-refresh": ("RR~", "3", "RA~"),
    "visitor-refresh": ("RV~", "4", "RT~"),
    "grant-code": ("GC~", "5", "GC~"),
}


class MintError(Exception):
    """Raised when a token can't be made from the given values. The text says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The wanted content of a local token. Times are in milliseconds; `roles` are names from the cell's access list."""

    kind: str
    issuer: str
    subject: str
    issued_at: int
    lifespan: int
    schema: str = ""
    scope: str = ""
    roles: tuple[str, ...] = ()
    older: bool = False


def local(cipher: Cipher, wish: Wish) -> str:
    """Return a local token, as a Personium unit makes it.

    Raises:
        MintError: if a field can't be part of a token.
    """
    texts = (wish.subject, wish.schema, wish.scope, *wish.roles)
    if not all(text.isascii() and text.isprintable() for text in texts):
        raise MintError("subject, schema, scope and roles of a local token must be printable ASCII.")
    prefix, kind, older_prefix = LOCAL_KINDS[wish.kind]
    issued = str(wish.issued_at)[::-1]
    roles = [" ".join(role_url(wish.issuer, role) for role in wish.roles)] if wish.kind == "visitor" else []
    if wish.older:
        fields = [issued, str(wish.lifespan), wish.subject, wish.schema, *roles, wish.issuer]
        return older_prefix + cipher.seal("\t".join(fields), older_initial_vector(wish.issuer))
    extras = ["id", wish.issuer, ""] if wish.kind == "visitor-refresh" else roles
    fields = [issued, kind, str(wish.lifespan), wish.subject, wish.schema, wish.scope, wish.issuer, *extras]
    return prefix + cipher.seal("\t".join(fields), initial_vector(wish.issuer))


def role_url(cell_url: str, role: str) -> str:
    """Return the URL of a role that the access list names `role` or `box/role`."""
    box, slash, name = role.rpartition("/")
    return f"{cell_url}__role/{box if slash else '__'}/{name}"


def access_jwt(issuer: Issuer, claims: dict[str, Any], private_key: Path | None) -> str:
    """Return a JWT access token of an issuer.

    Args:
        private_key: a PEM file; None for an issuer of HS256, whose key is in its JWK set.

    Raises:
        MintError: if the key doesn't belong to the issuer.
    """
    for key in issuer.keys:
        header = {"typ": "at+jwt"} | ({} if key.kid is None else {"kid": key.kid})
        signing = key.jwk.key if private_key is None else private_key.read_bytes()
        try:
            token = jwt.encode(claims, signing, algorithm=key.jwk.algorithm_name, headers=header)
            jwt.PyJWS().decode(token, key.jwk, [key.jwk.algorithm_name])
        except (PyJWTError, ValueError, TypeError, AttributeError):
            continue
        return token
    raise MintError(f"--key: must be a PEM file with the private key to one of the keys of {issuer.url}.")


def make_issuer(directory: Path, url: str) -> Path:
    """Create a JWT issuer for tests: a private key, a JWK set with its public key, and an issuers file.

    Return the path of the issuers file, the value for `CELLEXPORT_TRUSTED_ISSUERS`. It holds the issuer's URL and the
    name of the JWK set's file.

    Args:
        directory: for the three files; created if it is missing.
        url: the `iss` of the issuer's tokens.

    Raises:
        OSError: if one of the three files exists already, or can't be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    jwk = ECAlgorithm.to_jwk(private.public_key(), as_dict=True) | {"kid": "test-1", "use": "sig", "alg": "ES256"}
    issuers = directory / "issuers.toml"
    names = f'[[issuer]]\nurl = {json.dumps(url)}\nalgorithms = ["ES256"]\njwks = "jwks.json"\n'
    _write_all(
        (
            (directory / "private.pem", pem),
            (directory / "jwks.json", json.dumps({"keys": [jwk]}, indent=2).encode() + b"\n"),
            (issuers, names.encode()),
        )
    )
    return issuers


def _write_all(files: Iterable[tuple[Path, bytes]]) -> None:
    for path, content in files:
        with path.open("xb") as file:
            path.chmod(0o600)
            file.write(content)
