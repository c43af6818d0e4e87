"""The port to the store that keeps the records."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from server.exports.model import CellRecord


class StoreError(Exception):
    """Raised when a store can't be opened. The text says what is wrong and what to do, and contains no secret."""


class Store(Protocol):
    """A store of one record for each cell. Of two simultaneous writers of a record, only one succeeds.

    Revisions rise even if the store loses writes or is emptied: it continues above all that it may have lost. A store
    that notices such a loss is *in doubt*: its older records are DOUBTFUL until they are written again, or until the
    server has waited long enough for reports and calls `settle`.

    Every method raises `Refused`: STORE_UNAVAILABLE if the truth can't be known or a write can't be made now,
    DATA_DAMAGED if a record can't be read, NO_SPACE if there is no room to write. A call that raised has changed
    nothing; only a write that raised STORE_UNAVAILABLE may have been made all the same.
    """

    async def read(self, cell: str) -> CellRecord:
        """Return the record of a cell, or an empty one.

        The record is at least as new as the last write that was acknowledged before this call.
        """

    async def replace(self, record: CellRecord) -> bool:
        """Write a record if the stored one has the revision just below. Return whether it was written.

        A written record survives the death of this process, and of the machine if the store is configured for that.
        """

    async def underway(self) -> Sequence[CellRecord]:
        """Return the records that have an export, doubtful ones too, in the order in which exports were accepted."""

    def changes(self, cell: str) -> AbstractContextManager[asyncio.Event]:
        """Return an event that is set when the record of the cell may have changed.

        It may be set without a change, but never misses one. A subscriber clears it, reads, and waits again.
        """

    def queue_changes(self) -> AbstractContextManager[asyncio.Event]:
        """Return an event that is set, like that of `changes`, when an export may have been queued."""

    async def check(self) -> None:
        """Check that the records are still there and still this server's."""

    async def doubt(self) -> int | None:
        """Return None if the records are the truth, or else a number that identifies the loss."""

    async def settle(self, doubt: int) -> None:
        """End that doubt: every living exporter has had time to report, so the records are the truth from now on."""

    async def close(self) -> None:
        """Release all resources. No other method may be called afterwards."""
