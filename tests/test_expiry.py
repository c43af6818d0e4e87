"""The expiry of leases, step by step, on a clock that the test sets."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from server.exporter.snapshot_directory import SnapshotDirectory
from server.exports import transitions
from server.exports.clock import now_ms
from server.exports.events import NoEvents
from server.exports.expiry import Expiry
from server.exports.lease import LeaseProof
from server.exports.lifecycle import ExportLifecycle
from server.exports.model import Caller, CellRecord, Progress
from server.exports.repository import Repository
from server.exports.store_pulse import StorePulse
from server.stores.measured import MeasuredStore
from server.stores.sqlite.store import SqliteStore

LEASE = 10.0


class Scene:
    """A store with a claimed export, the expiry that scans the store, and the time on the test's clock."""

    def __init__(self, store: SqliteStore, directory: Path) -> None:
        self.now = 0.0
        self.sequence = 0
        self.store = OutdatedStore(store, lambda *_: None)
        self.repository = Repository(self.store, now_ms)
        self.lifecycle = ExportLifecycle(
            store=self.store,
            repository=self.repository,
            snapshots=SnapshotDirectory(directory),
            log=NoEvents(),
            queue_limit=9,
            clock=now_ms,
        )
        self.expiry = Expiry(
            store=self.store,
            lifecycle=self.lifecycle,
            clock=now_ms,
            pulse=StorePulse(),
            lease_seconds=LEASE,
            queue_seconds=1000,
            monotonic=lambda: self.now,
        )

    async def begin(self) -> None:
        started = await self.lifecycle.start("demo", "snap", "key", Caller())
        assert started.export is not None
        export_id = started.export.export_id
        await self.repository.apply("demo", lambda record: transitions.claim(record, export_id, "request", "hash"))
        await self.expiry.scan()

    async def report(self) -> None:
        def advance(record: CellRecord) -> CellRecord | None:
            assert record.export is not None
            moved = Progress(work_done=self.sequence, work_total=100)
            proof = LeaseProof(export_id=record.export.export_id, epoch=record.epoch, token_hash="hash")
            return transitions.report(record, proof, self.sequence, moved)

        self.sequence += 1
        await self.repository.apply("demo", advance)

    async def is_exporting(self) -> bool:
        return (await self.repository.read("demo")).export is not None


class OutdatedStore(MeasuredStore):
    """A store that can return an outdated list of exports once, as if another process wrote after the list was read."""

    kept: Sequence[CellRecord] | None = None

    async def underway(self) -> Sequence[CellRecord]:
        latest = await super().underway()
        kept, self.kept = self.kept, None
        return latest if kept is None else kept


def play(directory: Path, scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await SqliteStore.open(directory / "db")
        try:
            await scene(Scene(store, directory / "snapshots"))
        finally:
            await store.close()

    asyncio.run(main())


def test_a_report_in_the_very_last_moment_renews_the_lease_for_good(tmp_path: Path) -> None:
    async def scene(at: Scene) -> None:
        await at.begin()
        at.store.kept = await at.store.underway()
        await at.report()
        at.now = LEASE + 0.1
        await at.expiry.scan()

        for _ in range(8):
            at.now += LEASE / 4
            await at.report()
            await at.expiry.scan()
        assert await at.is_exporting()

        at.now += LEASE + 0.1
        await at.expiry.scan()
        assert not await at.is_exporting()

    play(tmp_path, scene)


def test_a_cancel_renews_no_lease_and_an_exporter_that_still_reports_is_cut_off(tmp_path: Path) -> None:
    async def scene(at: Scene) -> None:
        await at.begin()
        await at.lifecycle.cancel("demo", None, Caller())
        for _ in range(4):
            await at.expiry.scan()
            at.now += LEASE / 4
            await at.report()
            assert await at.is_exporting()

        at.now += 0.1
        await at.expiry.scan()
        assert not await at.is_exporting()

    play(tmp_path, scene)
