"""Migrations of the SQLite file: an older version is upgraded, even after interruptions. A newer one is refused."""

import sqlite3
from pathlib import Path

import pytest

from cellexport.v1.cell_export_pb2 import Outcome
from oracle import Oracle
from unit import HandExporter, Program, Unit, eventually, needs

# The SQLite schema of version 1, with a queued export of one cell and an ended export of another.
VERSION_1 = """
CREATE TABLE cell (
    cell TEXT PRIMARY KEY, revision INTEGER NOT NULL, updated_at INTEGER NOT NULL, epoch INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE export (
    cell TEXT PRIMARY KEY REFERENCES cell, export_id TEXT NOT NULL, name TEXT NOT NULL, request_key TEXT NOT NULL,
    accepted_at INTEGER NOT NULL, phase TEXT NOT NULL, epoch INTEGER NOT NULL, request_id TEXT NOT NULL,
    token_hash TEXT NOT NULL, sequence INTEGER NOT NULL, percent INTEGER NOT NULL, work_done INTEGER NOT NULL,
    work_total INTEGER NOT NULL, entries_done INTEGER NOT NULL, entries_total INTEGER NOT NULL,
    bytes_done INTEGER NOT NULL, bytes_total INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE outcome (
    cell TEXT PRIMARY KEY REFERENCES cell, export_id TEXT NOT NULL, name TEXT NOT NULL, epoch INTEGER NOT NULL,
    token_hash TEXT NOT NULL, result TEXT NOT NULL, reason TEXT, ended_at INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA application_id = 0x43454C58;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
INSERT INTO cell VALUES ('demo', 5, 1486976400001, 3), ('idle', 9, 1486976400002, 4);
INSERT INTO export VALUES
    ('demo', 'ab12', 'waiting', 'key', 1486976400000, 'queued', 0, '', '', 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO outcome VALUES ('idle', 'cd34', 'old', 4, 'hash', 'failed', 'no_space', 1486976300000);
"""


def make_version_1(unit: Unit) -> Path:
    path = unit.directory / "export.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(VERSION_1)
    connection.close()
    return path


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(number)


def test_the_first_version_is_brought_forward_with_all_that_it_holds(unit: Unit) -> None:
    unit.add_cell("idle")
    path = make_version_1(unit)

    unit.start_server()

    assert version(path) == 2

    # The queued export was accepted in 2017, so it has waited for longer than the queue allows, and the server ends it.
    ended = unit.wait_until_ready().last_outcome
    assert (ended.name, ended.reason) == ("waiting", Outcome.REASON_QUEUE_TIMEOUT)
    assert unit.get("idle").revision == 9

    with unit.channel() as channel, Oracle(unit, exporter=False):
        exporter = HandExporter(channel)
        assert unit.get("idle").last_outcome.name == "old"

        unit.begin("next", cell="idle")
        claimed = exporter.must_claim()
        assert claimed.lease.epoch > 4
        exporter.report(claimed, 1, 10)
        exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)


@needs("strace")
@pytest.mark.parametrize(("call", "kills"), [("pwrite64", 4), ("fdatasync,fsync", 2)])
def test_a_migration_that_is_killed_anywhere_in_the_middle_has_not_begun_or_is_done(
    unit: Unit, call: str, kills: int
) -> None:
    unit.add_cell("idle")
    path = make_version_1(unit)
    kept = path.read_bytes()
    survived = False

    for number in range(1, 40):
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        path.write_bytes(kept)

        inject = f"inject={call}:signal=SIGKILL:when={number}"
        traced = ("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-P", f"{path}-wal")
        server = unit.start("server", *traced, "-e", f"trace={call}", "-e", inject)
        survived = serves_or_dies(server)
        server.kill()

        assert version(path) in (1, 2)
        connection = sqlite3.connect(path)
        names = [name for (name,) in connection.execute("SELECT name FROM export")]
        assert names == ["waiting"]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()

        if survived:
            break

    assert survived
    assert number > kills


def serves_or_dies(server: Program) -> bool:
    def serves() -> bool:
        return any(line["message"] == "serving" for line in server.lines())

    eventually(lambda: serves() or server.process.poll() is not None)
    return serves()


def test_a_newer_version_is_not_brought_back(unit: Unit) -> None:
    path = make_version_1(unit)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()

    before = path.read_bytes()
    server = unit.start("server")

    assert server.process.wait(60) == 2
    assert "was written by a newer version of cellexport. Start that version." in server.log.read_text()
    assert path.read_bytes() == before
