"""`python -m server token`: its tokens work, and its explanations of tokens are true and show no secret."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import zygote
from tokens import ACCESS_FILE, CELL_URL, SECRET, cookie_verdict, expired, resident, verdict, visitor
from unit import TOKEN, UNIT_URL, Unit, needs

EXPIRED, INVALID, REFRESH = "PR401-AU-0002", "PR401-AU-0006", "PR401-AU-0007"
MISSING, LACKING, SCOPE = "PR401-AU-0001", "PR403-AU-0002", "PR403-AU-0007"
KEY = "private.pem"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an issuer of JWTs by `python -m server token issuer`, and return the issuer's directory."""
    directory = tmp_path_factory.mktemp("issuer") / "issuer"
    done = run({}, "issuer", str(directory))
    assert done.stdout == f"CELLEXPORT_TRUSTED_ISSUERS={directory / 'issuers.toml'}\n"
    return directory


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory, issuer: Path) -> Iterator[Unit]:
    with Unit(tmp_path_factory.mktemp("command") / "unit") as unit:
        unit.add_cell("demo")
        (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
        unit.start_server(**settings(unit, issuer))
        unit.start_gateway()
        yield unit


def settings(unit: Unit, issuer: Path) -> dict[str, str]:
    more = {"CELLEXPORT_UNIT_SECRET": SECRET, "CELLEXPORT_TRUSTED_ISSUERS": str(issuer / "issuers.toml")}
    return unit.variables(**more)


def run(variables: Mapping[str, str], *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return zygote.run("server", "token", *arguments, environment=variables, given=given)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resident", "--subject", "admin"], "200"),
        (["resident", "--subject", "admin", "--older"], "200"),
        (["resident", "--subject", "admin", "--scope", ""], SCOPE),
        (["resident", "--subject", "staff"], LACKING),
        (["resident"], MISSING),
        (["resident", "--subject", "admin", "--seconds", "-1"], EXPIRED),
        (["visitor", "--role", "admin"], "200"),
        (["visitor", "--role", "staff", "--role", "box1/keeper"], "200"),
        (["visitor", "--role", "admin", "--older"], "200"),
        (["visitor"], LACKING),
        (["unit-user"], LACKING),
        (["unit-user", "--older"], LACKING),
        (["password-change"], LACKING),
        (["resident-refresh"], REFRESH),
        (["visitor-refresh"], REFRESH),
        (["resident-refresh", "--older"], REFRESH),
        (["visitor-refresh", "--older"], REFRESH),
        (["grant-code"], INVALID),
        (["jwt", "--key", KEY], "200"),
        (["jwt", "--key", KEY, "--audience", UNIT_URL], "200"),
        (["jwt", "--key", KEY, "--audience", "https://x.example/"], INVALID),
        (["jwt", "--key", KEY, "--scope", "export-report"], SCOPE),
        (["jwt", "--key", KEY, "--seconds", "-60"], EXPIRED),
    ],
)
def test_a_minted_token_is_of_its_kind(unit: Unit, issuer: Path, arguments: list[str], expected: str) -> None:
    words = [str(issuer / KEY) if word == KEY else word for word in arguments]
    variables = settings(unit, issuer)

    made = run(variables, "mint", *words, "--cell", "demo")
    assert made.returncode == 0, made.stderr
    [token] = made.stdout.splitlines()
    assert verdict(unit, token) == expected

    explained = run(variables, "explain", "--cell", "demo", given=made.stdout)
    assert explained.returncode == (0 if expected == "200" else 1), explained.stderr
    [line] = re.findall(r"^GET +(.*)$", explained.stdout, re.MULTILINE)
    assert line.startswith("allowed" if expected == "200" else expected)

    wrapped = run(variables, "mint", *words, "--cell", "demo", "--cookie")
    cookie, peer = wrapped.stdout.splitlines()
    assert cookie_verdict(unit, cookie, peers=(peer,)) == expected

    explained = run(variables, "explain", "--cell", "demo", "--cookie", given=wrapped.stdout)
    assert explained.returncode == (0 if expected == "200" else 1)
    assert explained.stdout.startswith("kind       ")


@needs("curl")
@pytest.mark.parametrize("more", [[], ["--cookie"]])
def test_the_curl_that_is_printed_works(unit: Unit, issuer: Path, more: list[str]) -> None:
    made = run(settings(unit, issuer), "mint", "resident", "--cell", "demo", "--subject", "admin", *more)
    done = subprocess.run([*shlex.split(made.stderr), "-sS"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("HTTP/1.1 200")


def test_an_explanation_says_what_is_in_a_token(unit: Unit, issuer: Path) -> None:
    variables = settings(unit, issuer)

    def explain(token: str) -> str:
        done = run(variables, "explain", "--cell", "demo", given=token + "\n")
        assert not done.stderr
        assert token not in done.stdout
        assert SECRET not in done.stdout
        return done.stdout

    text = explain(resident(scope="root openid", schema="https://app.example/"))
    for line in (f'issuer +"{CELL_URL}"', 'subject +"admin"', 'schema +"https://app.example/"', 'scope +"openid root"'):
        assert re.search(line, text), text
    assert "__role/__/admin" in explain(visitor(f"{CELL_URL}__role/__/admin"))
    # The explanation names the fault, which responses to callers never do.
    assert "the token's account is not in the cell's access file" in explain(resident("gone"))
    assert "can't be decrypted" in explain(resident()[:-1])
    assert "its fields are wrong" in explain(resident(lifespan="x"))
    assert "issued in the future, or its lifetime is too long" in explain(resident(issued=expired(-(10**7))))
    assert "aud names neither" in explain(run_jwt(variables, issuer, "--audience", "https://x.example/"))
    assert "opaque" in explain("nonsense")
    assert "not a valid JWT" in explain("a.b.c")
    assert re.search(r"export +allowed", explain(TOKEN))
    text = explain(
        run_jwt(variables, issuer, "--audience", UNIT_URL, "--scope", "export-report", "--subject", "\x1b[31m")
    )
    assert re.search(r"export +allowed", text)
    assert "\x1b" not in text
    off = run(unit.variables(), "explain", "--cell", "demo", given=resident())
    assert "without CELLEXPORT_UNIT_SECRET" in off.stdout
    off = run(unit.variables(), "explain", "--cell", "demo", "--cookie", given="cookie\npeer\n")
    assert (off.returncode, off.stdout[:25]) == (1, "GET        PR401-AU-0009 ")


def run_jwt(variables: Mapping[str, str], issuer: Path, *more: str) -> str:
    made = run(variables, "mint", "jwt", "--cell", "demo", "--key", str(issuer / KEY), *more)
    return made.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["mint", "resident"], "--cell"),
        (["mint", "resident", "--cell", "../x"], "--cell"),
        (["mint", "nothing", "--cell", "demo"], "nothing"),
        (["mint", "resident", "--cell", "demo", "--seconds", "0"], "--seconds"),
        (["mint", "resident", "--cell", "demo", "--role", "x"], "--role"),
        (["mint", "resident", "--cell", "demo", "--subject", "é"], "printable ASCII"),
        (["mint", "resident", "--cell", "demo", "--subject", "a\tb"], "printable ASCII"),
        (["mint", "jwt", "--cell", "demo"], "--key"),
        (["mint", "jwt", "--cell", "demo", "--older"], "--older"),
        (["mint", "jwt", "--cell", "demo", "--issuer", "https://x.example/"], "--issuer"),
        (["mint", "jwt", "--cell", "demo", "--key", "Makefile"], "--key"),
        (["explain", "--cell", "nothing"], "standard input"),
        (["explain", "--cell", "demo"], "standard input"),
    ],
)
def test_a_mistake_is_reported_and_ends_with_2(unit: Unit, issuer: Path, arguments: list[str], why: str) -> None:
    done = run(settings(unit, issuer), *arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_setting_is_named(unit: Unit) -> None:
    for arguments, setting in ((["resident"], "CELLEXPORT_UNIT_SECRET"), (["jwt"], "CELLEXPORT_TRUSTED_ISSUERS")):
        done = run(unit.variables(), "mint", *arguments, "--cell", "demo")
        assert done.returncode == 2
        assert setting in done.stderr


@pytest.mark.process
def test_an_issuer_is_not_made_over_another(issuer: Path) -> None:
    before = (issuer / "private.pem").read_bytes()
    done = run({}, "issuer", str(issuer))
    assert done.returncode == 1
    assert "Name a new directory" in done.stderr
    assert (issuer / "private.pem").read_bytes() == before
    assert {path.stat().st_mode & 0o777 for path in issuer.iterdir()} == {0o600}
    assert "d" not in json.loads((issuer / "jwks.json").read_text())["keys"][0]
