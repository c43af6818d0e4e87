"""Admission of calls: request key, cell, authentication and authorisation, in the contract's order."""

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
    """A call's request key and caller, for the method that serves it."""

    request_key: str
    identity: Identity


class Admission:
    """The check that every call passes before its method runs.

    Args:
        judge: authenticates and authorises the caller.
        cells: finds the cell that the call names.
    """

    def __init__(self, *, judge: Judge, cells: CellDirectory) -> None:
        self._judge = judge
        self._cells = cells

    def admit(self, cell: str | None, credentials: Credentials, privilege: Privilege) -> Identity:
        """Return the caller's identity, if the caller holds the privilege on the cell.

        Args:
            cell: the cell's name, or None for a call about the whole unit.

        Raises:
            Refused: CELL_NOT_FOUND, DATA_DAMAGED, and what `Judge.judge` raises.
        """
        found = None if cell is None else self._find(cell, privilege)
        return self._judge.judge(credentials, found, privilege)

    def _find(self, name: str, privilege: Privilege) -> Cell:
        if privilege is Privilege.EXPORT_REPORT:
            # A running export must be able to report and end although its cell's access file was damaged or removed.
            self._cells.require_name(name)
            return Cell(name=name)
        return self._cells.find(name)


def presented_in(metadata: Any) -> tuple[str, Credentials]:
    """Return the call's request key, or a new key if it has none, and its credentials.

    Raises:
        Refused: REQUEST_KEY_INVALID
    """
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
        # Join repeated values as an HTTP server joins repeated header lines.
        unit_user=",".join(_values(metadata, UNIT_USER)),
    )


def _values(metadata: Any, name: str) -> tuple[str, ...]:
    # A binary value becomes `?`, so that it counts as malformed, not as absent.
    return tuple(value if isinstance(value, str) else "?" for key, value in metadata if key == name)
