"""Personium's local tokens, as units issue them: a prefix, and fields encrypted with the unit's cipher.

The fields are joined with TABs. Today's layout: time of issue (milliseconds, digits reversed), type, lifespan in
milliseconds, subject, schema, scope, issuer, and for a visitor the URLs of its roles. The layout of 2017 has neither
type nor scope, and has the roles before the issuer. Only `mint` issues tokens, for tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cellexport.program.unit_urls import UnitUrls
from server.auth.cipher import Cipher, initial_vector, older_initial_vector
from server.auth.credentials import Credentials
from server.auth.rights import NONE, Accepted
from server.cells import Cell
from server.exports.model import Caller
from server.refusals import Refusal, Refused

UNIT_USER = "AU~"
_RESIDENTS = frozenset({"AR~", "AA~"})
_VISITORS = frozenset({"AV~", "AL~"})
_REFRESH = frozenset({"RR~", "RV~", "RA~", "RT~"})
# The type and the number of fields of each prefix. The older layout has no type.
_TODAY = {"AR~": ("0", 7), "AV~": ("1", 8), UNIT_USER: ("6", 7), "AP~": ("7", 7)}
_OLDER = {"AA~": 5, "AL~": 6, UNIT_USER: 5, "AP~": 5}

# The most digits of a number in a token.
_MOST_DIGITS = 15
# How far in the future the time of issue may be, because clocks differ; and the longest lifespan.
_AHEAD_MS = 60_000
_LONGEST_MS = 366 * 86_400_000
# The name that stands for the main box in the URL of a role.
_MAIN_BOX = "__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of a local token. Times are in milliseconds. `scope` is None if the token's layout has no scope."""

    issued_at: int
    lifespan: int
    subject: str
    schema: str
    scope: frozenset[str] | None
    issuer: str
    roles: tuple[str, ...]

    @property
    def expires_at(self) -> int:
        return self.issued_at + self.lifespan


class LocalTokens:
    """The `TokenKind` of the unit's own tokens. The judge asks it last, so it refuses every text that is no such token,
    always in the same way.
    """

    def __init__(self, cipher: Cipher, urls: UnitUrls) -> None:
        self._cipher = cipher
        self._urls = urls

    def version(self) -> int:
        """Return 0: the unit's secret doesn't change while the server runs."""
        return 0

    def accept(self, token: str, credentials: Credentials, cell: Cell | None, now: int) -> Accepted:
        prefix, issuer = token[:3], self._issuer(token, cell)
        today, older = self._open(token, issuer)
        if prefix in _REFRESH and (issuer in today or issuer in older):
            raise Refused(Refusal.REFRESH_TOKEN)
        content = _today(prefix, today) or _older(prefix, older)
        if content is None or content.issuer != issuer:
            raise Refused(Refusal.TOKEN_INVALID, note=_explanation(prefix, max(today, older, key=len)))
        if content.issued_at > now + _AHEAD_MS or not 0 < content.lifespan <= _LONGEST_MS:
            raise Refused(Refusal.TOKEN_INVALID, note="the token was issued in the future, or its lifetime is too long")
        if now > content.expires_at:
            raise Refused(Refusal.TOKEN_EXPIRED)
        return self._accepted(prefix, content)

    def content(self, token: str, cell: Cell | None) -> Content | None:
        """Return the content of a local access token, expired or not, or None if the text is no readable one."""
        today, older = self._open(token, self._issuer(token, cell))
        return _today(token[:3], today) or _older(token[:3], older)

    def _issuer(self, token: str, cell: Cell | None) -> str:
        return self._urls.unit if cell is None or token.startswith(UNIT_USER) else self._urls.cell(cell.name)

    def _open(self, token: str, issuer: str) -> tuple[Sequence[str], Sequence[str]]:
        """Return the fields of a token as read in today's layout and in that of 2017. Always decrypt both, so that all
        tokens take the same time.
        """
        today = self._cipher.open(token[3:], initial_vector(issuer))
        older = self._cipher.open(token[3:], older_initial_vector(issuer))
        return (today or "").split("\t"), (older or "").split("\t")

    def _accepted(self, prefix: str, content: Content) -> Accepted:
        account, roles, privileges = None, frozenset[str](), None
        subject = content.subject
        if prefix in _RESIDENTS:
            account, subject = subject, f"{content.issuer}#{subject}"
        elif prefix in _VISITORS:
            roles = frozenset(filter(None, (_role(url, content.issuer) for url in content.roles)))
        else:
            privileges = NONE
        return Accepted(
            caller=Caller(schema=content.schema or None, subject=subject),
            expires_at=content.expires_at,
            privileges=privileges,
            account=account,
            roles=roles,
            scope=content.scope,
        )


def _today(prefix: str, fields: Sequence[str]) -> Content | None:
    kind, count = _TODAY.get(prefix, ("", 0))
    if len(fields) != count or fields[1] != kind:
        return None
    issued, _, lifespan, subject, schema, scope, issuer, *roles = fields
    return _content(issued, lifespan, subject, schema, frozenset(scope.split()), issuer, roles)


def _older(prefix: str, fields: Sequence[str]) -> Content | None:
    if len(fields) != _OLDER.get(prefix, 0):
        return None
    issued, lifespan, subject, schema, *roles, issuer = fields
    return _content(issued, lifespan, subject, schema, None, issuer, roles)


def _content(
    issued: str, lifespan: str, subject: str, schema: str, scope: frozenset[str] | None, issuer: str, roles: list[str]
) -> Content | None:
    issued_at, milliseconds = _number(issued[::-1]), _number(lifespan)
    if issued_at is None or milliseconds is None:
        return None
    return Content(
        issued_at=issued_at,
        lifespan=milliseconds,
        subject=subject,
        schema=schema,
        scope=scope,
        issuer=issuer,
        roles=tuple(url for field in roles for url in field.split()),
    )


def _number(text: str) -> int | None:
    return int(text) if len(text) <= _MOST_DIGITS and text.isdecimal() else None


def _role(url: str, cell_url: str) -> str | None:
    """Return the name of a role in the cell's access list, or None for a role of another cell."""
    start = f"{cell_url}__role/"
    box, slash, name = url.removeprefix(start).partition("/")
    if not url.startswith(start) or not (box and slash and name) or "/" in name:
        return None
    return name if box == _MAIN_BOX else f"{box}/{name}"


def _explanation(prefix: str, fields: Sequence[str]) -> str:
    """Return the reason of a refusal, for the log only."""
    if prefix not in _TODAY and prefix not in _OLDER and prefix not in _REFRESH:
        return "unknown kind of token"
    if len(fields) == 1:
        return "the token can't be decrypted: it was changed, or is of another cell or unit"
    return "the token decrypts, but its fields are wrong"
