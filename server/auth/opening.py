"""Builds the judge of tokens from the settings."""

from collections.abc import Callable

from cellexport.program.unit_urls import UnitUrls
from server.auth import Judge, TokenKind
from server.auth.cipher import Cipher
from server.auth.cookie import Cookies
from server.auth.jwt_access import JwtAccessTokens
from server.auth.local import LocalTokens
from server.auth.master import MasterToken
from server.auth.settings import TokenSettings


def build_judge(settings: TokenSettings, urls: UnitUrls, clock: Callable[[], int]) -> Judge:
    """Return a judge for all kinds of tokens that the settings turn on."""
    kinds: list[TokenKind] = []
    cookies = None
    if settings.master_token is not None:
        kinds.append(MasterToken(settings.master_token))
    if settings.issuers:
        kinds.append(JwtAccessTokens(settings.issuers, urls))
    if settings.unit_secret is not None:
        cipher = Cipher(settings.unit_secret.reveal_bytes())
        cookies = Cookies(cipher, urls)
        # Last, because it refuses every token that no other kind accepts.
        kinds.append(LocalTokens(cipher, urls))
    return Judge(kinds, cookies=cookies, clock=clock)
