"""The store in a SQLite file: its own promises. test_store_contract.py has the promises of every store."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from records import following, full, idle
from server.exports.store import StoreError
from server.refusals import Refused
from server.stores.sqlite.store import SqliteStore
from unit import Unit, eventually

Test = Callable[[SqliteStore], Awaitable[None]]


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


def run(path: Path, test: Test) -> None:
    async def main() -> None:
        async with opened(path) as store:
            await test(store)

    asyncio.run(main())


@pytest.mark.parametrize("harm", ["removed", "replaced", "emptied"])
def test_a_file_that_is_not_ours_any_more_is_noticed(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "db"

    async def test(store: SqliteStore) -> None:
        first = following(await store.read("demo"))
        await store.replace(first)
        kept = path.read_bytes()
        if harm == "emptied":
            path.write_bytes(b"")
        else:
            path.unlink()
        if harm == "replaced":
            path.write_bytes(kept)
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await store.check()
        for call in (store.read("demo"), store.underway(), store.replace(full(first))):
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await call

    run(path, test)


@pytest.mark.parametrize("noticed_by", ["check", "write"])
def test_a_write_by_another_program_is_noticed_and_distrusted(tmp_path: Path, noticed_by: str) -> None:
    async def test(store: SqliteStore) -> None:
        first = following(await store.read("demo"))
        await store.replace(first)
        other = sqlite3.connect(tmp_path / "db", isolation_level=None)
        other.executescript("DELETE FROM export; DELETE FROM cell;")
        other.close()
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await (store.check() if noticed_by == "check" else store.replace(full(first)))
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await store.check()
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await store.read("demo")

    run(tmp_path / "db", test)


@pytest.mark.fault("F41")
def test_a_lock_held_by_somebody_else_fails_writes_and_not_reads(tmp_path: Path) -> None:
    async def test(store: SqliteStore) -> None:
        first = following(await store.read("demo"))
        await store.replace(first)
        other = sqlite3.connect(tmp_path / "db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await store.replace(full(first))
        assert await store.read("demo") == first
        other.close()
        assert await store.replace(full(first))

    run(tmp_path / "db", test)


def test_a_word_that_nobody_knows_is_damage(tmp_path: Path) -> None:
    async def write(store: SqliteStore) -> None:
        first = following(await store.read("demo"))
        await store.replace(first)
        await store.replace(idle(first))

    async def read(store: SqliteStore) -> None:
        with pytest.raises(Refused, match="DATA_DAMAGED"):
            await store.read("demo")

    run(tmp_path / "db", write)
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute("UPDATE outcome SET result = 'odd'")
    connection.commit()
    connection.close()
    run(tmp_path / "db", read)


def make_foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.commit()
    connection.close()


def make_newer(path: Path) -> None:
    asyncio.run(_touch(path))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1000")
    connection.close()


async def _touch(path: Path) -> None:
    async with opened(path):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(b"no database at all"), "is damaged"),
        (make_foreign, "is the database of another program"),
        (make_newer, "was written by a newer version"),
        (lambda path: path.mkdir(), "can't be used as the store"),
    ],
    ids=["empty", "text", "foreign", "newer", "directory"],
)
def test_a_file_that_can_not_be_the_store_is_refused(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "db")
    with pytest.raises(StoreError, match=message):
        asyncio.run(_touch(tmp_path / "db"))


def test_a_log_left_by_a_removed_database_is_not_taken_for_the_new_ones(tmp_path: Path) -> None:
    async def write(store: SqliteStore) -> None:
        first = following(await store.read("demo"))
        await store.replace(first)
        for ending in ("", "-wal", "-shm"):
            (tmp_path / f"new{ending}").write_bytes((tmp_path / f"db{ending}").read_bytes())

    async def read(store: SqliteStore) -> None:
        assert (await store.read("demo")).export is None

    run(tmp_path / "db", write)
    (tmp_path / "new").unlink()
    run(tmp_path / "new", read)


@pytest.mark.fault("F13")
def test_a_second_server_on_the_same_file_is_refused_with_one_sentence(unit: Unit) -> None:
    unit.start_server()
    second = unit.start("server", CELLEXPORT_GRPC_LISTEN="127.0.0.1:0")
    assert second.process.wait(60) == 2
    assert second.log.read_text().count("\n") == 1
    assert "belongs to a server that is running: one server owns the file." in second.log.read_text()
    assert unit.get().cell == "demo"


@pytest.mark.fault("F13")
def test_a_second_server_on_the_same_port_is_refused_with_one_sentence(unit: Unit) -> None:
    unit.start_server()
    second = unit.start("server", CELLEXPORT_STORE=f"sqlite:///{unit.directory}/other.db")
    assert second.process.wait(60) == 2
    assert "CELLEXPORT_GRPC_LISTEN: 127.0.0.1" in second.log.read_text()
    assert unit.get().cell == "demo"


def test_a_removed_file_makes_the_answer_503_and_never_ready(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_LEASE_SECONDS="1")
    unit.start_gateway()
    assert unit.http().status == 200
    (unit.directory / "export.db").unlink()
    eventually(lambda: unit.http().status == 503, within=3)
    answer = unit.http()
    assert answer.code == "PR503-SV-0003"
    assert answer.headers["retry-after"] == "1"
