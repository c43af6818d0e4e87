"""The port to where records are kept."""

from collections.abc import Sequence
from typing import Protocol

from server.model import CellRecord


class Store(Protocol):
    """Keeps one record a cell, and replaces it only in the way that two writers can't both succeed.

    Every method raises `Refused`: with STORE_UNAVAILABLE when the truth can't be known or a write can't be made now,
    with DATA_DAMAGED when what is stored can't be read, with NO_SPACE when there is no room to write. A call that
    raised has changed nothing, except that a write which raised STORE_UNAVAILABLE may have been made.
    """

    async def read(self, cell: str) -> CellRecord:
        """The record of a cell; one of revision 0 if there is none.

        It shows at least what the last acknowledged write before this call wrote.
        """

    async def replace(self, record: CellRecord) -> bool:
        """Write a record if the one kept is of the revision just below, and tell whether that was so.

        What was written survives the death of this process and of the machine.
        """

    async def underway(self) -> Sequence[CellRecord]:
        """The records that have an export, the one accepted first leading."""

    async def check(self) -> None:
        """Look whether what is kept is still there and still ours."""

    async def close(self) -> None:
        """Let go of everything. No other method may be called after it."""
