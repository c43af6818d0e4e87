"""The promises of the port `Store`, tested on each of its adapters."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from records import following, full, idle
from redis_server import RedisServer, running
from server.exports.clock import now_ms
from server.exports.model import CellRecord, Trust
from server.exports.store import Store
from server.stores.redis.place import RedisPlace
from server.stores.redis.store import RedisStore
from server.stores.sqlite.store import SqliteStore
from unit import needs

Test = Callable[[Store], Awaitable[None]]


@dataclass(frozen=True)
class Backend:
    """A database for records, such as a SQLite file. Each `opened` yields another store on the same records."""

    open: Callable[[], Awaitable[Store]]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        store = await self.open()
        try:
            doubt = await store.doubt()
            if doubt is not None:
                await store.settle(doubt)
            yield store
        finally:
            await store.close()

    def run(self, test: Test) -> None:
        async def main() -> None:
            async with self.opened() as store:
                await test(store)

        asyncio.run(main())


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis"), "--save", "", "--databases", "100") as server:
        yield server


_databases = itertools.count()


REDIS = pytest.param("redis", marks=[needs("redis-server"), pytest.mark.process])


@pytest.fixture(params=["sqlite", REDIS])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "sqlite":
        return Backend(lambda: SqliteStore.open(tmp_path / "db"))
    server: RedisServer = request.getfixturevalue("redis_server")
    place = RedisPlace.parse("STORE", f"redis://127.0.0.1:{server.port}/{next(_databases)}")
    return Backend(lambda: RedisStore.open(place, now_ms))


def test_a_cell_without_a_record_has_no_export_and_no_outcome(backend: Backend) -> None:
    async def test(store: Store) -> None:
        record = await store.read("demo")
        assert record == CellRecord(cell="demo", revision=record.revision)
        assert (await store.read("other")).revision == record.revision
        assert list(await store.underway()) == []

    backend.run(test)


def test_a_written_record_is_read_by_this_store_and_by_the_next(backend: Backend) -> None:
    written: list[CellRecord] = []

    async def write(store: Store) -> None:
        first = following(await store.read("demo"))
        assert await store.replace(first)
        assert await store.read("demo") == first
        written.append(full(first))
        assert await store.replace(written[0])
        assert await store.read("demo") == written[0]

    async def read(store: Store) -> None:
        assert await store.read("demo") == written[0]
        assert list(await store.underway()) == written
        assert await store.replace(idle(written[0]))
        assert await store.read("demo") == idle(written[0])
        assert list(await store.underway()) == []

    backend.run(write)
    backend.run(read)


def test_only_the_successor_of_what_is_kept_is_written(backend: Backend) -> None:
    async def test(store: Store) -> None:
        nothing = await store.read("demo")
        first = following(nothing)
        assert not await store.replace(replace(first, revision=first.revision + 1))
        assert not await store.replace(replace(first, revision=1))
        assert await store.replace(first)
        assert not await store.replace(following(nothing, accepted_at=5))
        assert not await store.replace(replace(first, revision=first.revision + 2))
        assert await store.read("demo") == first

    backend.run(test)


def test_of_simultaneous_writers_exactly_one_succeeds(backend: Backend) -> None:
    async def test(store: Store) -> None:
        nothing = await store.read("demo")
        writes = await asyncio.gather(*(store.replace(following(nothing, number)) for number in range(50)))
        assert writes.count(True) == 1
        assert (await store.read("demo")).updated_at == writes.index(True)

    backend.run(test)


def test_exports_under_way_come_in_the_order_of_their_acceptance(backend: Backend) -> None:
    async def test(store: Store) -> None:
        for cell, accepted_at in (("b", 2), ("c", 1), ("a", 3), ("d", 10)):
            await store.replace(following(await store.read(cell), accepted_at))
        assert [record.cell for record in await store.underway()] == ["c", "b", "a", "d"]
        await store.replace(idle(await store.read("b")))
        assert [record.cell for record in await store.underway()] == ["c", "a", "d"]

    backend.run(test)


def test_a_writer_that_goes_away_in_the_middle_leaves_no_stale_answer(backend: Backend) -> None:
    async def test(store: Store) -> None:
        nothing = await store.read("demo")
        for delay in range(8):
            cell = f"cell{delay}"
            first = replace(following(nothing), cell=cell)
            writing = asyncio.ensure_future(store.replace(first))
            for _ in range(delay):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            # The cancelled write may or may not have happened. The first read shows which, and a write on what it shows
            # must succeed.
            seen = await store.read(cell)
            assert seen in (replace(nothing, cell=cell), first)
            assert await store.replace(following(seen, accepted_at=5))

    backend.run(test)


def test_a_loss_of_nothing_is_no_doubt(backend: Backend) -> None:
    async def test(store: Store) -> None:
        await store.check()
        assert await store.doubt() is None
        assert (await store.read("demo")).trust is Trust.SURE

    backend.run(test)
    backend.run(test)


def test_a_subscriber_is_notified_of_changes_of_its_cell_and_of_no_other(backend: Backend) -> None:
    async def test(store: Store) -> None:
        await asyncio.sleep(0.3)
        with store.changes("demo") as changed, store.changes("other") as other, store.queue_changes() as queued:
            for event in (changed, other, queued):
                event.clear()
            first = following(await store.read("demo"))
            await store.replace(first)
            await asyncio.wait_for(changed.wait(), 2)
            await asyncio.wait_for(queued.wait(), 2)
            for event in (changed, queued):
                event.clear()
            await store.replace(full(first))
            await asyncio.wait_for(changed.wait(), 2)
            assert not queued.is_set()
            assert not other.is_set()

    backend.run(test)


@dataclass(frozen=True)
class Write:
    """A write of an export's progress that the store has acknowledged."""

    percent: int
    revision: int


def test_no_read_shows_less_than_what_was_acknowledged_before_it_began(backend: Backend) -> None:
    """Compare the store with a register: one writer, and readers that may see a newer value, but never an older one."""

    async def test(store: Store) -> None:
        acknowledged = Write(0, (await store.read("demo")).revision)
        over = asyncio.Event()

        async def write() -> None:
            nonlocal acknowledged
            record = following(await store.read("demo"))
            assert record.export is not None
            for percent in range(100):
                record = replace(record, export=replace(record.export, percent=percent))
                assert await store.replace(record)
                acknowledged = Write(percent, record.revision)
                record = replace(record, revision=record.revision + 1)
            over.set()

        async def read() -> None:
            last = 0
            while not over.is_set():
                before = acknowledged
                seen = await store.read("demo")
                assert seen.revision >= max(before.revision, last)
                assert seen.export is None or seen.export.percent >= before.percent
                last = seen.revision
                await asyncio.sleep(0)

        await asyncio.gather(write(), *(read() for _ in range(8)))

    backend.run(test)


@pytest.mark.parametrize(
    "backend", [pytest.param("redis", marks=[needs("redis-server"), pytest.mark.process])], indirect=True
)
def test_two_stores_on_the_same_records_notice_each_others_changes(backend: Backend) -> None:
    async def main() -> None:
        async with backend.opened() as one, backend.opened() as other:
            await asyncio.sleep(0.3)
            with other.changes("demo") as changed:
                changed.clear()
                first = following(await one.read("demo"))
                assert await one.replace(first)
                await asyncio.wait_for(changed.wait(), 2)
                assert await other.read("demo") == first
                writes = await asyncio.gather(
                    *(store.replace(full(first)) for store in (one, other)),
                    *(store.replace(idle(first)) for store in (one, other)),
                )
                assert writes.count(True) == 1
                assert await one.read("demo") == await other.read("demo")

    asyncio.run(main())


def test_a_store_is_used_by_one_event_loop_and_leaves_no_thread(backend: Backend) -> None:
    before = threading.active_count()

    async def test(store: Store) -> None:
        await store.read("demo")

    backend.run(test)
    assert threading.active_count() == before
