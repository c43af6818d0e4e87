"""Who gets in: request key, cell, authentication and authorisation, in the contract's order."""

from dataclasses import dataclass
from typing import Any

from cellexport import request_key
from cellexport.metadata import AUTHORIZATION, COOKIE, COOKIE_PEER, UNIT_USER
from server.auth import Identity, Judge
from server.auth.credentials import Credentials
from server.auth.rights import Privilege
from server.cells import Cell, CellDirectory
from server.refusals import Refusal, Refused


@dataclass(frozen=True, slots=True)
class Call:
    """What a method gets to know of its call besides the message."""

    request_key: str
    identity: Identity


class Admission:
    def __init__(self, *, judge: Judge, cells: CellDirectory) -> None:
        self._judge = judge
        self._cells = cells

    def admit(self, cell: str | None, credentials: Credentials, privilege: Privilege) -> Identity:
        """Who the caller is, if it may do on that cell, or on the unit, what needs that privilege.

        Raises:
            Refused: CELL_NOT_FOUND, DATA_DAMAGED, and what `Judge.judge` raises.
        """
        return self._judge.judge(credentials, None if cell is None else self._cell(cell, privilege), privilege)

    def remaining_seconds(self, identity: Identity) -> float:
        """For how long the caller's token is still good."""
        return self._judge.remaining_seconds(identity)

    def _cell(self, name: str, privilege: Privilege) -> Cell:
        if privilege is Privilege.EXPORT_REPORT:
            # An export under way goes on, and ends, whatever becomes of its cell's access file meanwhile.
            self._cells.require_name(name)
            return Cell(name=name)
        return self._cells.find(name)


def presented_in(metadata: Any) -> tuple[str, Credentials]:
    """The call's request key, or a new one, and its credentials. Raises `Refused` with REQUEST_KEY_INVALID."""
    return _key(metadata), _credentials(metadata)


def _key(metadata: Any) -> str:
    values = _values(metadata, request_key.METADATA)
    if values in ((), ("",)):
        return request_key.generate()
    if len(values) > 1 or not request_key.is_valid(values[0]):
        raise Refused(Refusal.REQUEST_KEY_INVALID)
    return values[0]


def _credentials(metadata: Any) -> Credentials:
    authorization = _values(metadata, AUTHORIZATION)
    return Credentials(
        authorization=",".join(authorization) if authorization else None,
        cookies=_values(metadata, COOKIE),
        peers=_values(metadata, COOKIE_PEER),
        # As an HTTP server joins header lines.
        unit_user=",".join(_values(metadata, UNIT_USER)),
    )


def _values(metadata: Any, name: str) -> tuple[str, ...]:
    # What is no text is there all the same: malformed, not absent.
    return tuple(value if isinstance(value, str) else "?" for key, value in metadata if key == name)
