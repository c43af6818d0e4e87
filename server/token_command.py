"""`python -m server token`: makes tokens for tests, and explains tokens.

A token to explain comes from standard input, never from the command line, which every user of a machine can read.
"""

import os
import secrets
import shlex
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import click

from cellexport.environment import Environment, SettingError
from cellexport.program.unit_urls import UnitUrls
from server.auth import explain, mint
from server.auth.cipher import Cipher
from server.auth.cookie import Cookies, seal
from server.auth.credentials import Credentials, PresentedCookie
from server.auth.issuers import SETTING, Issuer
from server.auth.local import LocalTokens
from server.auth.opening import build_judge
from server.auth.rights import Privilege
from server.auth.settings import TokenSettings
from server.cells import Cell, CellDirectory
from server.exports.clock import now_ms
from server.refusals import Refused
from server.settings import Settings

_UNIT_LEVEL = frozenset({"unit-user"})


@click.group()
def token() -> None:
    """Make tokens for tests, and explain why a token is refused.

    Settings come from the environment. Use those of the server.
    """


@token.command("mint")
@click.argument("kind", type=click.Choice([*mint.LOCAL_KINDS, "jwt"]))
@click.option("--cell", required=True, help="The cell that the token is made for.")
@click.option("--subject", default="me", show_default=True, help="The bearer; for a resident, the account.")
@click.option("--role", "roles", multiple=True, help="A role of a visitor, or box/role; repeatable.")
@click.option("--scope", default="root", show_default=True, help="The scope; separate several values by spaces.")
@click.option(
    "--seconds",
    default=3600,
    show_default=True,
    help="Lifetime in seconds; negative makes a token that expired that long ago.",
)
@click.option("--older", is_flag=True, help="Use the layout of 2017 (local tokens only).")
@click.option("--cookie", is_flag=True, help="Wrap the token in a cookie with a peer.")
@click.option("--issuer", help="The issuer of a JWT, if several are trusted.")
@click.option("--audience", help="The audience of a JWT.  [default: the cell's URL]")
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The PEM file with the issuer's private key.",
)
def mint_token(
    kind: str,
    cell: str,
    subject: str,
    roles: tuple[str, ...],
    scope: str,
    seconds: int,
    older: bool,
    cookie: bool,
    issuer: str | None,
    audience: str | None,
    key: Path | None,
) -> None:
    """Make a token of a KIND and print it. With --cookie, print the cookie and then its peer on a second line. Standard
    error gets a curl command that uses the token.
    """
    if seconds == 0 or (roles and kind != "visitor") or (older and kind == "jwt"):
        raise click.UsageError("--seconds can't be 0, --role needs the kind visitor, and --older needs a local token.")
    _require_name(cell)
    environment = Environment(os.environ)
    settings, urls = TokenSettings.read(environment), UnitUrls.read(environment)
    if kind == "jwt":
        now = int(time.time())
        claims = {"aud": audience or urls.cell(cell), "sub": subject, "scope": scope, "iat": now, "exp": now + seconds}
        chosen = _issuer(settings, issuer)
        made = mint.access_jwt(chosen, {"iss": chosen.url, "client_id": subject} | claims, key)
    else:
        # A lifespan can't be negative, so an expired token is one that was issued earlier.
        lifespan = abs(seconds) * 1000
        wish = mint.Wish(
            kind=kind,
            issuer=urls.unit if kind in _UNIT_LEVEL else urls.cell(cell),
            subject=subject,
            issued_at=now_ms() - (0 if seconds > 0 else 2 * lifespan),
            lifespan=lifespan,
            scope=scope,
            roles=roles,
            older=older,
        )
        made = mint.local(_cipher(settings), wish)
    _print_with_curl(environment, settings, urls, cell, made, cookie=cookie)


@token.command("issuer")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--url", default="https://issuer.test/", show_default=True, help="The iss of its tokens.")
def make_issuer(directory: Path, url: str) -> None:
    """Make an issuer of JWTs for tests: a key, its JWK set, and the file for CELLEXPORT_TRUSTED_ISSUERS."""
    try:
        file = mint.make_issuer(directory, url)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}. Name a new directory.") from error
    click.echo(f"{SETTING}={shlex.quote(str(file.absolute()))}")
    click.echo(
        "Set this variable for the server, and mint with --key " + shlex.quote(str(directory / "private.pem")), err=True
    )


@token.command("explain")
@click.option("--cell", required=True, help="The cell that the token is presented to.")
@click.option("--cookie", is_flag=True, help="Read a cookie, and its peer on the next line.")
def explain_token(cell: str, cookie: bool) -> None:
    """Print the content of the token on standard input, and why it would be refused. Exit status: 1 if GET would refuse
    the token.
    """
    settings = Settings.read(os.environ)
    judge = build_judge(settings.tokens, settings.urls, now_ms)
    given = _input("Cookie" if cookie else "Token")
    if not given:
        raise click.UsageError("the first line of standard input must be the token, without the word Bearer.")
    try:
        place = CellDirectory(settings.unit_dir / "cells").find(cell)
    except Refused as refused:
        raise click.UsageError(f"--cell: {refused.text} {refused.note}".strip()) from refused
    cipher = _cipher(settings.tokens) if settings.tokens.unit_secret else None
    inside: str | None = given
    if cookie:
        peer = _input("Peer")
        credentials = Credentials(cookies=(given,), peers=(peer,))
        inside = _opened(Cookies(cipher, settings.urls), PresentedCookie(given, peer), place) if cipher else None
    else:
        credentials = Credentials(authorization=f"Bearer {given}")
    if inside is not None:
        local = LocalTokens(cipher, settings.urls) if cipher else None
        for name, text in explain.describe(inside, place, local):
            click.echo(f"{name:11}{text}")
    status = explain.verdict(judge, credentials, place, Privilege.ROOT)
    click.echo(f"{'GET':11}{status or 'allowed'}")
    if not explain.is_local(given) and not cookie:
        claim = explain.verdict(judge, credentials, None, Privilege.EXPORT_REPORT)
        click.echo(f"{'export':11}{claim or 'allowed'}")
    sys.exit(1 if status else 0)


def _require_name(cell: str) -> None:
    try:
        CellDirectory.require_name(cell)
    except Refused as refused:
        raise click.UsageError("--cell: not a valid cell name.") from refused


def _input(label: str) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(label, hide_input=True)).strip()
    return sys.stdin.readline().strip()


def _opened(cookies: Cookies, cookie: PresentedCookie, cell: Cell) -> str | None:
    """Return the token in a cookie, or None if the cookie can't be decrypted: the verdict will report that."""
    try:
        return cookies.token(cookie, cell)
    except Refused:
        return None


def _cipher(settings: TokenSettings) -> Cipher:
    if settings.unit_secret is None:
        raise SettingError("CELLEXPORT_UNIT_SECRET: is not set. Local tokens and cookies need it.")
    return Cipher(settings.unit_secret.reveal_bytes())


def _issuer(settings: TokenSettings, url: str | None) -> Issuer:
    if not settings.issuers:
        raise SettingError(f"{SETTING}: is not set. It names the issuers of JWTs; `token issuer` makes one for tests.")
    urls = list(settings.issuers)
    chosen = settings.issuers.get(urls[0] if url is None and len(urls) == 1 else url or "")
    if chosen is None:
        raise click.UsageError(f"--issuer: must be one of {', '.join(urls)}.")
    return chosen


def _print_with_curl(
    environment: Environment, settings: TokenSettings, urls: UnitUrls, cell: str, made: str, *, cookie: bool
) -> None:
    url = f"http://{environment.listen('CELLEXPORT_HTTP_LISTEN', '127.0.0.1:8080')}/{cell}/__export"
    header, printed = f"Authorization: Bearer {made}", [made]
    if cookie:
        peer = secrets.token_hex(16)
        sealed = seal(_cipher(settings), peer, made, urlsplit(urls.unit).hostname or "")
        header, url, printed = f"Cookie: p_cookie={sealed}", f"{url}?p_cookie_peer={peer}", [sealed, peer]
    click.echo("\n".join(printed))
    click.echo(f"curl -i -H {shlex.quote(header)} {shlex.quote(url)}", err=True)
