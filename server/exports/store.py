"""The port to where records are kept."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from server.exports.model import CellRecord

# The topic of `Store.changes` for exports that begin to wait for an exporter. No cell has that name.
QUEUE = ""


class StoreError(Exception):
    """Raised when a store can't be opened. Its text says what is wrong and what to do, and holds no secret."""


class Store(Protocol):
    """Keeps one record a cell, and replaces it only in the way that two writers can't both succeed.

    Revisions rise even where the store forgets: one that was made anew, or has lost its latest writes, goes on above
    all that it may have forgotten. A store that notices such a loss says so: what it reads is then doubtful, until it
    has been written again, or somebody has waited long enough for that and calls `settle`.

    Every method raises `Refused`: with STORE_UNAVAILABLE when the truth can't be known or a write can't be made now,
    with DATA_DAMAGED when what is stored can't be read, with NO_SPACE when there is no room to write. A call that
    raised has changed nothing, except that a write which raised STORE_UNAVAILABLE may have been made.
    """

    async def read(self, cell: str) -> CellRecord:
        """The record of a cell; one without export and outcome if there is none.

        It shows at least what the last acknowledged write before this call wrote.
        """

    async def replace(self, record: CellRecord) -> bool:
        """Write a record if the one kept is of the revision just below, and tell whether that was so.

        What was written survives the death of this process, and of the machine as far as the store was told to care.
        """

    async def underway(self) -> Sequence[CellRecord]:
        """The records that have an export, the one accepted first leading. Doubtful ones are among them."""

    def changes(self, topic: str) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when the record of a cell may have changed, or an export may have joined the `QUEUE`.

        It is set once too often rather than once too few: whoever waits clears it, reads, and waits again.
        """

    async def check(self) -> None:
        """Look whether what is kept is still there and still ours."""

    async def doubt(self) -> int | None:
        """None if what is kept is the truth; or else a number that tells this loss from any other."""

    async def settle(self, doubt: int) -> None:
        """End that doubt: whoever knows better has had time to say so, and what is kept is the truth from now on."""

    async def close(self) -> None:
        """Let go of everything. No other method may be called after it."""
