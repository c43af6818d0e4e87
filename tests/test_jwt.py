"""JWT access tokens of trusted issuers, for a cell or for the whole unit, over HTTP and gRPC."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import HMACAlgorithm, RSAAlgorithm

from cellexport import client
from cellexport.environment import Environment
from cellexport.program.unit_urls import UnitUrls
from server.auth import Judge
from server.auth.credentials import Credentials
from server.auth.opening import build_judge
from server.auth.rights import Privilege
from server.auth.settings import TokenSettings
from server.cells import Cell
from server.refusals import Refused
from thoroughness import examples, property_test
from tokens import CELL_URL, ISSUER, Issuer, b64, decoded, generate, now, verdict
from unit import UNIT_URL, Program, Unit, eventually

EXPIRED, INVALID, SIGNATURE, SCOPE = "PR401-AU-0002", "PR401-AU-0006", "PR401-AU-0008", "PR403-AU-0007"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer")).add_key("one").add_key("two")


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Unit]:
    with Unit(tmp_path_factory.mktemp("jwt") / "unit") as unit:
        unit.add_cell("demo")
        unit.add_cell("other")
        unit.start_server(**issuer.settings)
        unit.start_gateway()
        yield unit


def at(seconds: int) -> int:
    return int(time.time()) + seconds


def padded(issuer: Issuer, size: int) -> str:
    """Return the longest valid token whose value of `Authorization` has at most `size` characters."""
    for filler in range(size, 0, -1):
        token = issuer.token(padding="x" * filler)
        if len(f"Bearer {token}") <= size:
            return token
    raise AssertionError


def unsigned(issuer: Issuer, algorithm: str, signature: bytes = b"") -> str:
    header = json.dumps({"alg": algorithm, "typ": "at+jwt", "kid": "one"})
    return f"{b64(header.encode())}.{b64(json.dumps(issuer.claims()).encode())}.{b64(signature)}"


def confused(issuer: Issuer) -> str:
    """Return a token signed with HMAC, whose secret is the text of the issuer's public key, which anybody can have."""
    pem = (
        issuer.keys["one"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    body = unsigned(issuer, "HS256").removesuffix(".")
    return f"{body}.{b64(HMACAlgorithm(HMACAlgorithm.SHA256).sign(body.encode(), pem))}"


def by_itself(issuer: Issuer) -> str:
    """Return a token that is signed with a foreign key, and that offers this key in its own header."""
    own = Issuer(Path("/nowhere"), keys={"mine": rsa.generate_private_key(public_exponent=65537, key_size=2048)})
    jwk = own.jwk("mine")
    header = {"kid": None, "jwk": jwk, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/", "x5c": ["x"]}
    return own.token(header)


def cut(token: str, part: int) -> str:
    parts = token.split(".")
    parts[part] = ""
    return ".".join(parts)


def shorter(token: str) -> str:
    signed, _, signature = token.rpartition(".")
    return f"{signed}.{b64(decoded(signature)[:-1])}"


def text(claims: str) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.sign(claims)


def claimed(issuer: Issuer, more: str) -> str:
    """Return valid claims as a JSON text, with the text `more` in front of the closing brace."""
    return json.dumps(issuer.claims())[:-1] + more + "}"


Make = Callable[[Issuer], str]
TABLE: dict[str, tuple[Make, str]] = {
    "good": (lambda issuer: issuer.token(), "200"),
    "by the second key": (lambda issuer: issuer.token(kid="two"), "200"),
    "for the unit": (lambda issuer: issuer.token(aud=UNIT_URL), "200"),
    "for several": (lambda issuer: issuer.token(aud=["https://x.example/", CELL_URL]), "200"),
    "for several, and a number": (lambda issuer: issuer.token(aud=[1, CELL_URL]), "200"),
    "whole media type": (lambda issuer: issuer.token({"typ": "application/at+jwt"}), "200"),
    "media type in capitals": (lambda issuer: issuer.token({"typ": "AT+JWT"}), "200"),
    "unknown things in the header": (lambda issuer: issuer.token({"x": {"y": []}}), "200"),
    "root among scopes": (lambda issuer: issuer.token(scope="a root b"), "200"),
    "without a subject": (lambda issuer: issuer.token(sub=None), "200"),
    "as long as can be": (lambda issuer: padded(issuer, 4096), "200"),
    "longer": (lambda issuer: padded(issuer, 4096) + "x" * 5, INVALID),
    "much longer": (lambda issuer: padded(issuer, 9000), INVALID),
    "alg none": (lambda issuer: unsigned(issuer, "none"), INVALID),
    "alg None": (lambda issuer: unsigned(issuer, "None"), INVALID),
    "alg nOnE, signed": (lambda issuer: unsigned(issuer, "nOnE", b"x"), INVALID),
    "no signature": (lambda issuer: unsigned(issuer, "RS256"), INVALID),
    "alg HS256 by the public key": (confused, INVALID),
    "alg PS256": (lambda issuer: issuer.token({"alg": "PS256"}), INVALID),
    "alg RS512": (lambda issuer: issuer.token({"alg": "RS512"}), INVALID),
    "no alg": (lambda issuer: issuer.token({"alg": None}), INVALID),
    "alg a list": (lambda issuer: issuer.token({"alg": ["RS256"]}), INVALID),
    "its own key": (by_itself, INVALID),
    "unknown kid": (lambda issuer: issuer.token({"kid": "three"}), INVALID),
    "kid a path": (lambda issuer: issuer.token({"kid": "../../dev/null"}), INVALID),
    "kid a number": (lambda issuer: issuer.token({"kid": 1}), INVALID),
    "no kid among two": (lambda issuer: issuer.token({"kid": None}), INVALID),
    "the other's kid": (lambda issuer: issuer.token({"kid": "two"}), SIGNATURE),
    "signature of something else": (lambda issuer: issuer.token()[:-300] + "A" * 300, SIGNATURE),
    "signature too short": (lambda issuer: shorter(issuer.token()), SIGNATURE),
    "wrong signature, and expired": (lambda issuer: issuer.token({"kid": "two"}, exp=1), SIGNATURE),
    "wrong signature, and another cell": (lambda issuer: issuer.token({"kid": "two"}, aud="x"), SIGNATURE),
    "no header": (lambda issuer: cut(issuer.token(), 0), INVALID),
    "no claims": (lambda issuer: cut(issuer.token(), 1), INVALID),
    "two parts": (lambda issuer: issuer.token().rpartition(".")[0], INVALID),
    "four parts": (lambda issuer: issuer.token() + ".x", INVALID),
    "five parts (JWE)": (lambda issuer: issuer.token() + ".x.y", INVALID),
    "padded": (lambda issuer: issuer.token() + "==", INVALID),
    "typ JWT": (lambda issuer: issuer.token({"typ": "JWT"}), INVALID),
    "no typ": (lambda issuer: issuer.token({"typ": None}), INVALID),
    "typ a number": (lambda issuer: issuer.token({"typ": 1}), INVALID),
    "crit": (lambda issuer: issuer.token({"crit": ["x"], "x": 1}), INVALID),
    "b64 false": (lambda issuer: issuer.token({"crit": ["b64"], "b64": False}), INVALID),
    "b64 false without crit": (lambda issuer: issuer.token({"b64": False}), INVALID),
    "expired": (lambda issuer: issuer.token(exp=at(-31)), EXPIRED),
    "expired within the leeway": (lambda issuer: issuer.token(exp=at(-25)), "200"),
    "expired long ago": (lambda issuer: issuer.token(exp=0), EXPIRED),
    "expired, and another cell's": (lambda issuer: issuer.token(exp=1, aud="x"), EXPIRED),
    "expired, without scope": (lambda issuer: issuer.token(exp=1, scope=None), EXPIRED),
    "no exp": (lambda issuer: issuer.token(exp=None), INVALID),
    "exp a text": (lambda issuer: issuer.token(exp=str(at(60))), INVALID),
    "exp with a fraction": (lambda issuer: issuer.token(exp=at(60) + 0.5), INVALID),
    "exp 1e308": (lambda issuer: issuer.token(exp=1e308), INVALID),
    "exp negative": (lambda issuer: issuer.token(exp=-1), INVALID),
    "exp true": (lambda issuer: issuer.token(exp=True), INVALID),
    "exp far beyond any year": (lambda issuer: issuer.token(exp=10**300), INVALID),
    "nbf to come": (lambda issuer: issuer.token(nbf=at(40)), INVALID),
    "nbf within the leeway": (lambda issuer: issuer.token(nbf=at(20)), "200"),
    "nbf a text": (lambda issuer: issuer.token(nbf="0"), INVALID),
    "iat a text": (lambda issuer: issuer.token(iat="0"), INVALID),
    "no iat": (lambda issuer: issuer.token(iat=None), "200"),
    "another cell's": (lambda issuer: issuer.token(aud=f"{UNIT_URL}other/"), INVALID),
    "a cell that begins so": (lambda issuer: issuer.token(aud=f"{UNIT_URL}demox"), INVALID),
    "a way around": (lambda issuer: issuer.token(aud=f"{UNIT_URL}other/../demo/"), INVALID),
    "aud in capitals": (lambda issuer: issuer.token(aud=CELL_URL.upper()), INVALID),
    "aud without its slash": (lambda issuer: issuer.token(aud=CELL_URL[:-1]), INVALID),
    "no aud": (lambda issuer: issuer.token(aud=None), INVALID),
    "aud empty": (lambda issuer: issuer.token(aud=[]), INVALID),
    "aud an object": (lambda issuer: issuer.token(aud={CELL_URL: 1}), INVALID),
    "unknown iss": (lambda issuer: issuer.token(iss="https://evil.example/"), INVALID),
    "iss with a slash more": (lambda issuer: issuer.token(iss=f"{ISSUER}/"), INVALID),
    "iss a list": (lambda issuer: issuer.token(iss=[ISSUER]), INVALID),
    "no iss": (lambda issuer: issuer.token(iss=None), INVALID),
    "no scope": (lambda issuer: issuer.token(scope=None), SCOPE),
    "empty scope": (lambda issuer: issuer.token(scope=""), SCOPE),
    "scopes that only look so": (lambda issuer: issuer.token(scope="rooty ROOT root2 x"), SCOPE),
    "root behind a TAB": (lambda issuer: issuer.token(scope="x\troot"), SCOPE),
    "the exporters' scope": (lambda issuer: issuer.token(scope="export-report"), SCOPE),
    "scope a list": (lambda issuer: issuer.token(scope=["root"]), INVALID),
    "sub a number": (lambda issuer: issuer.token(sub=1), INVALID),
    "aud twice": (lambda issuer: issuer.sign(claimed(issuer, f', "aud": "{CELL_URL}"')), INVALID),
    "twice, further down": (lambda issuer: issuer.sign(claimed(issuer, ', "x": {"a": 1, "a": 1}')), INVALID),
    "alg twice": (
        lambda issuer: issuer.sign(
            json.dumps(issuer.claims()), '{"alg": "none", "alg": "RS256", "typ": "at+jwt", "kid": "one"}'
        ),
        INVALID,
    ),
    "NaN": (lambda issuer: issuer.sign(claimed(issuer, ', "x": NaN')), INVALID),
    "Infinity": (lambda issuer: issuer.sign(claimed(issuer, ', "x": -Infinity')), INVALID),
    "a number with no end": (lambda issuer: issuer.sign(claimed(issuer, ', "nbf": 1e999')), INVALID),
    "a very long number": (lambda issuer: issuer.sign(claimed(issuer, ', "x": ' + "9" * 2000)), "200"),
    "nested deeply": (text("[" * 2500), INVALID),
    "nested deeply, well-formed": (text('{"a":' * 450 + "1" + "}" * 450), INVALID),
    "a list": (text("[]"), INVALID),
    "null": (text("null"), INVALID),
    "an empty object": (text("{}"), INVALID),
    "no JSON": (text("{'a': 1}"), INVALID),
    "a mark before it": (text("\ufeff{}"), INVALID),
}


@pytest.mark.parametrize("row", TABLE)
def test_jwts(unit: Unit, issuer: Issuer, row: str) -> None:
    make, expected = TABLE[row]
    assert verdict(unit, make(issuer)) == expected


def build(issuer: Issuer) -> Judge:
    environment = Environment(issuer.settings | {"CELLEXPORT_UNIT_URL": UNIT_URL})
    return build_judge(TokenSettings.read(environment), UnitUrls.read(environment), now)


def code(judge: Judge, token: str) -> str:
    try:
        judge.judge(Credentials(authorization=f"Bearer {token}"), Cell(name="demo"), Privilege.ROOT)
    except Refused as refused:
        return refused.refusal.value.personium_code
    return "200"


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "ES256", "ES512", "EdDSA", "HS256"])
def test_a_jwt_with_any_one_bit_changed_is_refused(tmp_path: Path, algorithm: str) -> None:
    issuer = Issuer(tmp_path / "issuer", algorithm).add_key("one")
    judge, token = build(issuer), issuer.token()
    assert code(judge, token) == "200"
    for place, letter in enumerate(token):
        for bit in range(7):
            mutant = token[:place] + chr(ord(letter) ^ 1 << bit) + token[place + 1 :]
            assert code(judge, mutant) in (INVALID, SIGNATURE), (place, bit)


@property_test
@settings(max_examples=examples(250, 1500), deadline=None)
@given(st.data())
def test_a_jwt_with_any_part_replaced_is_refused(issuer: Issuer, data: st.DataObject) -> None:
    judge, token = build(issuer), issuer.token()
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, len(token)))
    mutant = token[:start] + data.draw(st.text(max_size=20)) + token[end:]
    assert (code(judge, mutant) == "200") == (mutant == token)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
claim_names = st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "scope", "client_id", "jti"])
header_names = st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "jku", "x5c", "zip", "enc"])


@property_test
@settings(max_examples=examples(250, 1500), deadline=None)
@given(
    st.dictionaries(claim_names, json_values, max_size=3),
    st.dictionaries(header_names, json_values, max_size=2),
)
def test_any_claims_and_header_get_a_verdict(
    issuer: Issuer, claims: dict[str, object], header: dict[str, object]
) -> None:
    token = issuer.sign(
        json.dumps(issuer.claims() | claims), json.dumps({"alg": "RS256", "typ": "at+jwt", "kid": "one"} | header)
    )
    assert code(build(issuer), token) in ("200", EXPIRED, INVALID, SCOPE)


def cost(judge: Judge, token: str) -> float:
    """Return the processor time that the judge takes to refuse a token, in seconds."""
    started = time.thread_time()
    code(judge, token)
    return time.thread_time() - started


def test_a_refusal_takes_at_most_50_ms_of_processor_time(issuer: Issuer) -> None:
    judges = [build(issuer) for _ in range(3)]
    for make, expected in TABLE.values():
        token = make(issuer)
        if expected != "200":
            # One of three times has to be short, because the interpreter may collect garbage during the others. Each
            # judge is new, so no verdict is cached.
            assert any(cost(judge, token) < 0.05 for judge in judges)


def accepted(unit: Unit, token: str) -> bool:
    try:
        return unit.get(token=token).cell == "demo"
    except grpc.RpcError as error:
        info = client.error_info(error)
        return info is None or info.reason != "TOKEN_INVALID"


def kept(server: Program) -> int:
    return len(
        [line for line in server.lines() if line["message"] == "issuer key file is invalid; keeping the previous keys"]
    )


@pytest.mark.process
def test_keys_are_exchanged_while_the_server_runs(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "issuer").add_key("old")
    with Unit(tmp_path / "unit") as unit:
        unit.add_cell("demo")
        server = unit.start_server(**issuer.settings)
        unit.start_gateway()
        old = issuer.token()
        assert verdict(unit, old) == "200"
        issuer.add_key("new")
        new = issuer.token(kid="new")

        eventually(lambda: accepted(unit, new))
        assert verdict(unit, old) == verdict(unit, new) == "200"
        # Once the old key is removed from the key file, the server refuses tokens that were signed with it.
        del issuer.keys["old"]
        issuer.write()
        eventually(lambda: not accepted(unit, old))
        assert verdict(unit, old) == INVALID
        assert verdict(unit, new) == "200"
        # A key file with an empty list of keys is valid: the server then has no keys of the issuer, and refuses its
        # tokens.
        issuer.jwks.write_text('{"keys": []}')
        eventually(lambda: not accepted(unit, new))
        issuer.write()
        eventually(lambda: accepted(unit, new))
        # With an invalid key file the server keeps its keys, and logs that once.
        issuer.jwks.write_text('{"keys": [')
        issuer.jwks.write_text('{"keys": [')
        eventually(lambda: accepted(unit, new) and kept(server) == 1)
        issuer.jwks.unlink()
        eventually(lambda: accepted(unit, new) and kept(server) == 2)


def test_one_key_needs_no_kid(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "issuer", "ES256").add_key("one")
    assert code(build(issuer), issuer.token({"kid": None})) == "200"
    assert code(build(issuer), issuer.token({"kid": "two"})) == INVALID


def test_several_issuers_each_have_their_own_keys(tmp_path: Path) -> None:
    first = Issuer(tmp_path / "first", "RS256").add_key("one")
    second = Issuer(tmp_path / "second", "ES256", "https://second.example/").add_key("one")
    tables = [(issuer.directory / "issuers.toml").read_text() for issuer in (first, second)]
    whole = tmp_path / "issuers.toml"
    whole.write_text("\n".join(tables).replace('"jwks.json"', '"first/jwks.json"', 1).replace('"jwks', '"second/jwks'))
    environment = Environment({"CELLEXPORT_TRUSTED_ISSUERS": str(whole), "CELLEXPORT_UNIT_URL": UNIT_URL})
    judge = build_judge(TokenSettings.read(environment), UnitUrls.read(environment), now)

    assert code(judge, first.token()) == code(judge, second.token()) == "200"
    assert code(judge, second.token(iss=first.url)) == code(judge, first.token(iss=second.url)) == INVALID


def rsa_jwk(bits: int, exponent: int = 65537) -> dict[str, object]:
    key = Issuer(Path("/nowhere"), keys={"one": rsa.generate_private_key(public_exponent=65537, key_size=bits)}).jwk(
        "one"
    )
    return key | {"e": b64(exponent.to_bytes((exponent.bit_length() + 7) // 8, "big"))}


def private_jwk() -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(generate("RS256"), as_dict=True)


BAD_SETS: dict[str, Callable[[], object]] = {
    "a list": list,
    "no keys": lambda: {"keys": []},
    "keys that are none": lambda: {"keys": ["x"]},
    "a key of another kind": lambda: {"keys": [{"kty": "EC", "crv": "P-256", "x": "x", "y": "y"}]},
    "a key to encrypt with": lambda: {"keys": [rsa_jwk(2048) | {"use": "enc"}]},
    "a key of another algorithm": lambda: {"keys": [rsa_jwk(2048) | {"alg": "PS256"}]},
    "a short key": lambda: {"keys": [rsa_jwk(1024)]},
    "a huge key": lambda: {"keys": [rsa_jwk(2048) | {"n": b64(b"\xff" * 2048)}]},
    "key_ops null": lambda: {"keys": [rsa_jwk(2048) | {"key_ops": None}]},
    "a huge exponent": lambda: {"keys": [rsa_jwk(2048, 2**256 + 1)]},
    "a damaged key": lambda: {"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]},
    "a key without its number": lambda: {"keys": [{"kty": "RSA", "e": "AQAB"}]},
    "a private key": lambda: {"keys": [private_jwk()]},
    "two of one kid": lambda: {"keys": [rsa_jwk(2048), rsa_jwk(2048)]},
    "kid a number": lambda: {"keys": [rsa_jwk(2048) | {"kid": 1}]},
}


@pytest.mark.parametrize("row", BAD_SETS)
def test_an_invalid_set_of_keys_keeps_the_server_from_starting(unit: Unit, tmp_path: Path, row: str) -> None:
    issuer = Issuer(tmp_path / "issuer")
    issuer.write()
    issuer.jwks.write_text(json.dumps(BAD_SETS[row]()))
    program = unit.start("server", **issuer.settings)
    assert program.process.wait(60) == 2
    [message] = program.log.read_text().splitlines()
    assert message.startswith(f"cellexport-server: CELLEXPORT_TRUSTED_ISSUERS: {issuer.jwks}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must consist of"),
        ("x = 1", "must consist of"),
        ("[issuer]\nurl = 'x'", "must consist of"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = ['RS256']", "needs url, algorithms and jwks"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = ['RS256']\njwks = 'a'\nmore = 1", "and nothing else"),
        ("[[issuer]]\nurl = ''\nalgorithms = ['RS256']\njwks = 'a'", "url must be"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = ['none']\njwks = 'a'", "one of these families"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = []\njwks = 'a'", "one of these families"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = [1]\njwks = 'a'", "one of these families"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = [[]]\njwks = 'a'", "one of these families"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = ['RS256', 'HS256']\njwks = 'a'", "one of these families"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = ['RS256']\njwks = 1", "must name a file"),
        ("[[issuer]]\nurl = 'x'\nalgorithms = ['RS256']\njwks = 'nothing'", "can't be read"),
        ("[[issuer", "can't be read"),
    ],
)
def test_the_error_of_an_invalid_list_of_issuers_names_its_setting(
    unit: Unit, tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "issuers.toml"
    file.write_text(text)
    program = unit.start("server", CELLEXPORT_TRUSTED_ISSUERS=str(file))
    assert program.process.wait(60) == 2
    [message] = program.log.read_text().splitlines()
    assert message.startswith("cellexport-server: CELLEXPORT_TRUSTED_ISSUERS: ")
    assert why in message


def test_the_error_of_an_invalid_set_of_keys_shows_no_hmac_key(unit: Unit, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "issuer", "HS256")
    issuer.write()
    for key in ({"kty": "oct", "k": b64(b"canary-key")}, {"kty": "oct", "k": "canary key", "kid": "x"}):
        issuer.jwks.write_text(json.dumps({"keys": [key]}))
        program = unit.start("server", **issuer.settings)
        assert program.process.wait(60) == 2
        assert "canary" not in program.log.read_text()
        assert b64(b"canary-key") not in program.log.read_text()


def test_each_part_has_only_one_valid_encoding(issuer: Issuer) -> None:
    """A base64 text may end in unused bits. A token is refused if these bits are not the usual zeros."""
    token, judge = issuer.token(), build(issuer)
    start, last = token[:-1], token[-1]
    others = [letter for letter in ascii_letters + digits + "-_" if letter != last]
    same = [it for it in others if decoded(start.rpartition(".")[2] + it) == decoded(token.rpartition(".")[2])]
    assert same
    assert {code(judge, start + letter) for letter in same} == {INVALID}


def test_curves_go_with_their_algorithm(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "issuer", "ES256").add_key("one")
    other = Issuer(tmp_path / "other", "ES384", keys={"one": ec.generate_private_key(ec.SECP384R1())})
    assert code(build(issuer), other.token()) == INVALID
    assert code(build(issuer), other.token({"alg": "ES256"})) == SIGNATURE
