"""The privileges of an accepted token: a cell's access list gives them to roles, and the token's scope limits them."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from server.cells import Cell
from server.exports.model import Caller
from server.refusals import Refusal, Refused

# The role in an access list that every authenticated caller has.
_EVERYBODY = "all"


class Privilege(StrEnum):
    """A privilege that a method may need."""

    # Allows everything on one cell. The name is from Personium's API document.
    ROOT = "root"
    # For exporters: to claim, report and finish exports of any cell. No access list grants it.
    EXPORT_REPORT = "export-report"


ALL: frozenset[str] = frozenset(Privilege)
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A token that is genuine, meant for the cell, and not expired.

    Args:
        holder: identifies a caller that may hold leases.
        expires_at: the last millisecond, since 1970, in which the token is valid; None if it never expires.
        privileges: granted by the token itself; None if the cell's access list decides.
        account: the account whose roles count; None if `roles` count.
        scope: the limit of the privileges; None for no limit.
        for_unit: whether the token is valid for every cell of the unit.
    """

    caller: Caller
    holder: str = ""
    expires_at: int | None = None
    privileges: frozenset[str] | None = None
    account: str | None = None
    roles: frozenset[str] = frozenset()
    scope: frozenset[str] | None = None
    for_unit: bool = False


def require(needed: Privilege, accepted: Accepted, cell: Cell | None) -> None:
    """Raise `Refused` unless the token grants the privilege.

    Raises:
        Refused: CREDENTIALS_MISSING (the account was removed), PRIVILEGE_LACKING, SCOPE_INSUFFICIENT; in this order.
    """
    if needed not in _privileges(needed, accepted, cell):
        raise Refused(
            Refusal.PRIVILEGE_LACKING, note=f"neither a role of the caller nor the token itself grants {needed}"
        )
    if accepted.scope is not None and needed not in accepted.scope:
        raise Refused(Refusal.SCOPE_INSUFFICIENT, note=f"the token's scope lacks {needed}", privilege=needed)


def _privileges(needed: Privilege, accepted: Accepted, cell: Cell | None) -> Collection[str]:
    if accepted.privileges is not None:
        return accepted.privileges
    if cell is None or needed is not Privilege.ROOT:
        return NONE
    roles = accepted.roles if accepted.account is None else _roles(accepted.account, cell)
    return {privilege for role in (*roles, _EVERYBODY) for privilege in cell.acl.get(role, ())}


def _roles(account: str, cell: Cell) -> Collection[str]:
    roles = cell.accounts.get(account)
    if roles is None:
        raise Refused(Refusal.CREDENTIALS_MISSING, note="the token's account is not in the cell's access file")
    return roles
