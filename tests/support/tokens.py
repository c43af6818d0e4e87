"""Tokens and cookies built field by field, and the verdicts on them over HTTP and gRPC."""

import hashlib
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jwt.algorithms import Algorithm, get_default_algorithms

from cellexport import client
from cellexport.v1.cell_export_pb2 import GetCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import UNIT_URL, Unit

SECRET = "0123456789abcdef"
CELL_URL = f"{UNIT_URL}demo/"
ISSUER = "https://issuer.example/realm"
PEER = "0f8fad5b-d9cb-469f-a165-70867728950e"

ACCESS_FILE = """
owner = "http://localhost:8080/unitadmin/#owner"
[accounts]
admin = ["admin"]
boxed = ["box1/keeper"]
staff = ["staff"]
nobody = []
[acl]
admin = ["root"]
"box1/keeper" = ["auth-read", "root"]
staff = ["auth-read", "write", "rootish"]
exporter = ["export-report"]
"""


def now() -> int:
    return time.time_ns() // 1_000_000


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encrypt(plain: bytes, vector: bytes, *, secret: str = SECRET, padding: bytes | None = None) -> str:
    size = 16 - len(plain) % 16
    encryptor = Cipher(algorithms.AES(secret.encode()), modes.CBC(vector)).encryptor()
    return b64(encryptor.update(plain + (bytes([size]) * size if padding is None else padding)) + encryptor.finalize())


def today(name: str) -> bytes:
    return hashlib.md5(name.encode(), usedforsecurity=False).digest()


def of_2017(name: str) -> bytes:
    return ("123456789abcdefg" + name)[::-1][:16].encode()


def fields(kind: str, *extras: str, **changed: str) -> list[str]:
    """Return the fields of a local token in Personium's present layout, valid for an hour, with these changes."""
    values = {
        "issued": str(now())[::-1],
        "kind": kind,
        "lifespan": "3600000",
        "subject": "admin",
        "schema": "",
        "scope": "root",
        "issuer": CELL_URL,
    } | changed
    return [*values.values(), *extras]


def local(prefix: str, values: Sequence[str], *, issuer: str = CELL_URL, secret: str = SECRET) -> str:
    vector = of_2017(issuer) if prefix in ("AA~", "AL~", "RA~", "RT~") else today(issuer)
    return prefix + encrypt("\t".join(values).encode("latin-1"), vector, secret=secret)


def resident(account: str = "admin", scope: str = "root", **changed: str) -> str:
    return local("AR~", fields("0", subject=account, scope=scope, **changed))


def visitor(*roles: str, **changed: str) -> str:
    return local("AV~", fields("1", " ".join(roles), subject="https://unit1.example/b/#you", **changed))


def older(
    prefix: str, *extras: str, issued: int | None = None, lifespan: str = "3600000", account: str = "admin"
) -> str:
    return local(prefix, [str(now() if issued is None else issued)[::-1], lifespan, account, "", *extras, CELL_URL])


def expired(milliseconds: int = 3_601_000) -> str:
    """Return the field `issued` of a token that lives an hour and was issued this many milliseconds ago."""
    return str(now() - milliseconds)[::-1]


def cookie(token: str, *, peer: str = PEER, host: str = "unit1.example", vector: Any = today) -> str:
    masked = host
    for vowel in "aiueo":
        masked = masked.replace(vowel, "#")
    return encrypt(f"{peer}\t{token}".encode(), vector(masked))


@dataclass
class Issuer:
    """An issuer of JWTs with keys of one algorithm, in files that a server's settings can name."""

    directory: Path
    algorithm: str = "RS256"
    url: str = ISSUER
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def library(self) -> Algorithm:
        return get_default_algorithms()[self.algorithm]

    @property
    def jwks(self) -> Path:
        return self.directory / "jwks.json"

    @property
    def settings(self) -> dict[str, str]:
        return {"CELLEXPORT_TRUSTED_ISSUERS": str(self.directory / "issuers.toml")}

    def add_key(self, kid: str, key: Any = None) -> "Issuer":
        self.keys[kid] = generate(self.algorithm) if key is None else key
        self.write()
        return self

    def write(self) -> None:
        self.directory.mkdir(exist_ok=True)
        fresh = self.directory / "fresh"
        fresh.write_text(json.dumps({"keys": [self.jwk(kid) for kid in self.keys]}))
        fresh.rename(self.jwks)
        text = f'[[issuer]]\nurl = "{self.url}"\nalgorithms = ["{self.algorithm}"]\njwks = "jwks.json"\n'
        (self.directory / "issuers.toml").write_text(text)

    def jwk(self, kid: str) -> dict[str, Any]:
        key = self.keys[kid]
        public = key if isinstance(key, bytes) else key.public_key()
        return self.library.to_jwk(public, as_dict=True) | {"kid": kid}

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Return claims that are valid for an hour on the cell `demo`, except for changed ones; None omits a claim."""
        seconds = int(time.time())
        good = {"iss": self.url, "aud": CELL_URL, "sub": "svc", "scope": "root", "iat": seconds, "exp": seconds + 3600}
        return {name: value for name, value in (good | changed).items() if value is not None}

    def token(self, header: dict[str, Any] | None = None, kid: str | None = None, **changed: Any) -> str:
        return self.sign(json.dumps(self.claims(**changed)), header, kid)

    def sign(self, claims: str, header: dict[str, Any] | str | None = None, kid: str | None = None) -> str:
        """Sign a token with this text as its claims. A header given as text replaces the whole header."""
        kid = kid or next(iter(self.keys))
        whole = {"alg": self.algorithm, "typ": "at+jwt", "kid": kid} | (header if isinstance(header, dict) else {})
        first = header if isinstance(header, str) else json.dumps({k: v for k, v in whole.items() if v is not None})
        signed = f"{b64(first.encode())}.{b64(claims.encode())}"
        return f"{signed}.{b64(self.library.sign(signed.encode(), self.keys[kid]))}"


def generate(algorithm: str) -> Any:
    if algorithm == "HS256":
        return b"a key for tests of 32 bytes, or more"
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm])
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def verdict(unit: Unit, token: str | None, *, cell: str = "demo", **headers: str) -> str:
    """Return the verdict on a Bearer token, or on other headers: `200` or the code of a refusal.

    The verdict is asserted to be the same over HTTP and gRPC.
    """
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return ask(unit, cell, headers, cookies=(), peers=())


def cookie_verdict(unit: Unit, *cookies: str, peers: Sequence[str] = (PEER,), **headers: str) -> str:
    return ask(unit, "demo", headers, cookies=cookies, peers=peers)


def ask(unit: Unit, cell: str, headers: Mapping[str, str], *, cookies: Sequence[str], peers: Sequence[str]) -> str:
    sent = dict(headers) | ({"cookie": "; ".join(f"p_cookie={value}" for value in cookies)} if cookies else {})
    query = "&".join(f"p_cookie_peer={peer}" for peer in peers)
    answer = unit.http(path=f"/{cell}/__export?{query}", token=None, headers=sent)
    over_http = "200" if answer.status == 200 else answer.code
    metadata = (*headers.items(), *(("p-cookie", it) for it in cookies), *(("p-cookie-peer", peer) for peer in peers))
    over_grpc = "200"
    with unit.channel() as channel:
        try:
            CellExportServiceStub(channel).GetCellExport(
                GetCellExportRequest(cell=cell), metadata=tuple(metadata), timeout=10
            )
        except grpc.RpcError as error:
            info = client.error_info(error)
            over_grpc = str(error) if info is None else info.metadata["personium_code"]
    assert over_http == over_grpc
    if answer.status == 401:
        challenge = f'Bearer realm="{UNIT_URL}{cell}/"'
        invalid = over_http[-4:] in ("0002", "0006", "0007", "0008")
        assert answer.headers["www-authenticate"] == challenge + (', error="invalid_token"' if invalid else "")
    else:
        assert "www-authenticate" not in answer.headers
    return over_http
