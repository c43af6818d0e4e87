"""Records as rows, and back. Columns have the names of the fields in `exports.model`."""

import dataclasses
import sqlite3
from collections.abc import Sequence
from typing import Any

from server.exports.model import CellRecord, Export, Outcome, Phase, Progress, Reason, Result

_EXPORT = [field.name for field in dataclasses.fields(Export) if field.name != "progress"]
_PROGRESS = [field.name for field in dataclasses.fields(Progress)]
_OUTCOME = [field.name for field in dataclasses.fields(Outcome)]


def _columns(table: str, names: Sequence[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in names)


_SELECT = (
    f"SELECT cell.cell, cell.revision, cell.updated_at, cell.epoch, {_columns('export', _EXPORT + _PROGRESS)}, "
    f"{_columns('outcome', _OUTCOME)} FROM cell LEFT JOIN export USING (cell) LEFT JOIN outcome USING (cell)"
)


def _insert(table: str, names: Sequence[str]) -> str:
    values = ", ".join(f":{name}" for name in names)
    return f"INSERT OR REPLACE INTO {table} (cell, {', '.join(names)}) VALUES (:cell, {values})"


_INSERT_EXPORT = _insert("export", _EXPORT + _PROGRESS)
_INSERT_OUTCOME = _insert("outcome", _OUTCOME)


def select(connection: sqlite3.Connection, cell: str, floor: int) -> CellRecord:
    """Return the record of a cell, or an empty one at revision `floor`.

    Raises:
        ValueError: for an unknown phase, result or reason.
    """
    row = connection.execute(f"{_SELECT} WHERE cell.cell = ?", (cell,)).fetchone()
    return CellRecord(cell=cell, revision=floor) if row is None else _record(row)


def select_underway(connection: sqlite3.Connection) -> list[CellRecord]:
    """Return the records that have an export. Raise ValueError like `select`."""
    return [_record(row) for row in connection.execute(f"{_SELECT} WHERE export.cell IS NOT NULL")]


def _record(row: tuple[Any, ...]) -> CellRecord:
    head, rest = row[:4], row[4:]
    cell, revision, updated_at, epoch = head
    export = dict(zip(_EXPORT, rest, strict=False))
    progress = dict(zip(_PROGRESS, rest[len(_EXPORT) :], strict=False))
    outcome = dict(zip(_OUTCOME, rest[len(_EXPORT) + len(_PROGRESS) :], strict=True))
    return CellRecord(
        cell=cell,
        revision=revision,
        updated_at=updated_at,
        epoch=epoch,
        export=None if export["export_id"] is None else _export(export, progress),
        last_outcome=None if outcome["export_id"] is None else _outcome(outcome),
    )


def _export(columns: dict[str, Any], progress: dict[str, Any]) -> Export:
    flags = {name: bool(columns[name]) for name in ("stalled", "cancelled")}
    return Export(**columns | flags | {"phase": Phase(columns["phase"]), "progress": Progress(**progress)})


def _outcome(columns: dict[str, Any]) -> Outcome:
    reason = columns["reason"]
    result, reason = Result(columns["result"]), None if reason is None else Reason(reason)
    return Outcome(**columns | {"result": result, "reason": reason})


def replace_record(connection: sqlite3.Connection, record: CellRecord, floor: int) -> bool:
    """Write a record if the stored revision is lower by one, in one transaction. Return whether it was written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        written = _replace_in_transaction(connection, record, floor)
        connection.execute("COMMIT" if written else "ROLLBACK")
        return written
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _replace_in_transaction(connection: sqlite3.Connection, record: CellRecord, floor: int) -> bool:
    head = (record.revision, record.updated_at, record.epoch, record.cell)
    if record.revision == floor + 1:
        statement = "INSERT OR IGNORE INTO cell (revision, updated_at, epoch, cell) VALUES (?, ?, ?, ?)"
        changed = connection.execute(statement, head).rowcount
    else:
        statement = "UPDATE cell SET revision = ?, updated_at = ?, epoch = ? WHERE cell = ? AND revision = ?"
        changed = connection.execute(statement, (*head, record.revision - 1)).rowcount
    if changed != 1:
        return False
    key = {"cell": record.cell}
    if record.export is None:
        connection.execute("DELETE FROM export WHERE cell = :cell", key)
    else:
        export = {name: getattr(record.export, name) for name in _EXPORT}
        connection.execute(_INSERT_EXPORT, key | export | dataclasses.asdict(record.export.progress))
    if record.last_outcome is not None:
        connection.execute(_INSERT_OUTCOME, key | dataclasses.asdict(record.last_outcome))
    return True
