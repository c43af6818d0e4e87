"""`python -m server token`: makes tokens to test with, and explains tokens. Tokens to explain come from standard input,
never from the command line, which every user of a machine can read.
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
    """Tokens to test with, and what is wrong with a token.

    The settings are the server's, from the environment.
    """


@token.command("mint")
@click.argument("kind", type=click.Choice([*mint.LOCAL_KINDS, "jwt"]))
@click.option("--cell", required=True, help="The cell that the token is for.")
@click.option("--subject", default="me", show_default=True, help="Whom it names: for a resident, the account.")
@click.option("--role", "roles", multiple=True, help="A visitor's role, or box/role; may be given again.")
@click.option("--scope", default="root", show_default=True, help="What it is narrowed to; several with blanks.")
@click.option("--seconds", default=3600, show_default=True, help="How long it lives; below 0: it ended so long ago.")
@click.option("--older", is_flag=True, help="A local token in the layout of 2017.")
@click.option("--cookie", is_flag=True, help="Wrap it in a cookie, with a peer.")
@click.option("--issuer", help="A JWT's issuer, if several are trusted.")
@click.option("--audience", help="A JWT's audience.  [default: the cell's URL]")
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="The issuer's PEM file.")
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
    """Make a token of a KIND and print it, and on standard error the curl that uses it. A cookie's peer is on a line of
    its own.
    """
    if seconds == 0 or (roles and kind != "visitor") or (older and kind == "jwt"):
        raise click.UsageError("--seconds can't be 0, --role is for a visitor, and --older for a local token.")
    _require_name(cell)
    environment = Environment(os.environ)
    settings, urls = TokenSettings.read(environment), UnitUrls.read(environment)
    if kind == "jwt":
        now = int(time.time())
        claims = {"aud": audience or urls.cell(cell), "sub": subject, "scope": scope, "iat": now, "exp": now + seconds}
        chosen = _issuer(settings, issuer)
        made = mint.access_jwt(chosen, {"iss": chosen.url, "client_id": subject} | claims, key)
    else:
        # One that has ended was issued earlier: its life itself can't be negative.
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
@click.option("--url", default="https://issuer.test/", show_default=True, help="What its tokens say in iss.")
def make_issuer(directory: Path, url: str) -> None:
    """Make an issuer of JWTs to test with: a key, its JWK set, and the file for CELLEXPORT_TRUSTED_ISSUERS."""
    try:
        file = mint.make_issuer(directory, url)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}. Name a new directory.") from error
    click.echo(f"{SETTING}={shlex.quote(str(file.absolute()))}")
    click.echo("Set that for the server, and mint with --key " + shlex.quote(str(directory / "private.pem")), err=True)


@token.command("explain")
@click.option("--cell", required=True, help="The cell that it is presented to.")
@click.option("--cookie", is_flag=True, help="It is a cookie: its peer is on the line after it.")
def explain_token(cell: str, cookie: bool) -> None:
    """Say what the token on standard input is, and why it would be refused. Ends with 1 if GET would refuse it."""
    settings = Settings.read(os.environ)
    judge = build_judge(settings.tokens, settings.urls, now_ms)
    given = _input("Cookie" if cookie else "Token")
    if not given:
        raise click.UsageError("the first line of standard input must be the token, without Bearer before it.")
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
        raise click.UsageError("--cell: no cell can have that name.") from refused


def _input(what: str) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True)).strip()
    return sys.stdin.readline().strip()


def _opened(cookies: Cookies, cookie: PresentedCookie, cell: Cell) -> str | None:
    """The token in a cookie; None if it doesn't open, which is its verdict too."""
    try:
        return cookies.token(cookie, cell)
    except Refused:
        return None


def _cipher(settings: TokenSettings) -> Cipher:
    if settings.unit_secret is None:
        raise SettingError("CELLEXPORT_UNIT_SECRET: is not set: local tokens and cookies are made with it.")
    return Cipher(settings.unit_secret.reveal_bytes())


def _issuer(settings: TokenSettings, url: str | None) -> Issuer:
    if not settings.issuers:
        raise SettingError(f"{SETTING}: is not set: it names who issues JWTs. `token issuer` makes one to test with.")
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
