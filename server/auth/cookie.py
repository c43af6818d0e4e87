"""The cookie that a Personium unit gives to browsers: `p_cookie`, an encrypted token and a second text, the peer.

A request must also contain the peer, as `p_cookie_peer` in the query (over gRPC: `p-cookie-peer` in the metadata).

All flaws of a cookie have the same refusal. An invalid token inside a valid cookie has another refusal. The difference
is safe only because a changed cookie never decrypts at all: see `cipher`.
"""

import hmac
from urllib.parse import urlsplit

from cellexport.program.unit_urls import UnitUrls
from server.auth.cipher import Cipher, initial_vector, older_initial_vector
from server.auth.credentials import PresentedCookie
from server.cells import Cell
from server.refusals import Refusal, Refused

# The initial vector is made from the host with each vowel replaced.
_VOWELS = str.maketrans("aiueo", "#####")


class Cookies:
    """The cookies of a unit, decrypted for the host in the unit's or the cell's URL, never for a request's host."""

    def __init__(self, cipher: Cipher, urls: UnitUrls) -> None:
        self._cipher = cipher
        self._urls = urls

    def token(self, presented: PresentedCookie, cell: Cell | None) -> str:
        """Return the token in a cookie.

        Raises:
            Refused: COOKIE_REJECTED
        """
        found = ""
        for host in self._hosts(cell):
            for vector in (initial_vector, older_initial_vector):
                inside = self._cipher.open(presented.cookie, vector(_masked(host)))
                peer, _, token = (inside or "").partition("\t")
                same = hmac.compare_digest(_bytes(peer), _bytes(presented.peer))
                found = token if same and inside else found
        if not found:
            raise Refused(Refusal.COOKIE_REJECTED, note="the cookie can't be decrypted, or belongs to another peer")
        return found

    def _hosts(self, cell: Cell | None) -> list[str]:
        urls = [self._urls.unit] if cell is None else [self._urls.unit, self._urls.cell(cell.name)]
        return list(dict.fromkeys(urlsplit(url).hostname or "" for url in urls))


def seal(cipher: Cipher, peer: str, token: str, host: str) -> str:
    """Return a cookie with a token, as a unit with that host issues it."""
    return cipher.seal(f"{peer}\t{token}", initial_vector(_masked(host)))


def _masked(host: str) -> str:
    return host.translate(_VOWELS)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
