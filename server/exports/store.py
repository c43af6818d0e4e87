"""The port (interface) to the store, which keeps one record for each cell."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from server.exports.model import CellRecord


class StoreError(Exception):
    """Raised when a store can't be opened. The text says what is wrong and what to do, and contains no secret."""


class Store(Protocol):
    """A store of one record for each cell. Of two simultaneous writers of a record, only one succeeds.

    Revisions rise even if the store loses writes or is emptied: the store continues above all revisions that it may
    have lost. A store that notices such a loss is *in doubt*: a record that was written before the loss is DOUBTFUL
    until it is written again, or until the server has waited one lease for reports of exporters and calls `settle`.

    Every method raises `Refused`: STORE_UNAVAILABLE if the store can't return the newest record or can't write now,
    DATA_DAMAGED if a record is damaged, NO_SPACE if there is no space to write. A call that raised has changed nothing,
    with one exception: a write that raised STORE_UNAVAILABLE may have been made.
    """

    async def read(self, cell: str) -> CellRecord:
        """Return the record of a cell, or an empty record if none was written.

        The record is at least as new as the last write that was acknowledged before this call.
        """

    async def replace(self, record: CellRecord) -> bool:
        """Write a record if the stored record's revision is lower by one. Return whether the record was written.

        A written record survives a crash of this process. It survives a crash of the machine if the store is configured
        for that.
        """

    async def underway(self) -> Sequence[CellRecord]:
        """Return the records with an export in progress, also doubtful ones, in the order of the exports' start."""

    def changes(self, cell: str) -> AbstractContextManager[asyncio.Event]:
        """Return a context that holds an event. The event is set when the record of the cell may have changed.

        The event is set after every change, and sometimes without a change. The subscriber clears the event, reads the
        record, and waits again.
        """

    def queue_changes(self) -> AbstractContextManager[asyncio.Event]:
        """Return a context that holds an event, like `changes`. It is set when an export may have been queued."""

    async def check(self) -> None:
        """Check that the store is available, and whether its records were lost or were changed by another program."""

    async def doubt(self) -> int | None:
        """Return None if the store is not in doubt, or else a number that identifies the loss of writes."""

    async def settle(self, doubt: int) -> None:
        """End the doubt with this number: every living exporter has had time to report, so all records are current."""

    async def close(self) -> None:
        """Release all resources. No other method may be called afterwards."""
