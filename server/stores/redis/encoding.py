"""Records as bytes, and back: protobuf with a version. Fields have the names of the fields in `exports.model`."""

import dataclasses
from typing import Any

from google.protobuf.message import DecodeError

from cellexport.store.v1 import cell_record_pb2 as stored
from server.exports.model import CellRecord, Export, Outcome, Phase, Progress, Reason, Result

SCHEMA_VERSION = 1

_EXPORT = [field.name for field in dataclasses.fields(Export) if field.name not in ("phase", "progress")]
_PROGRESS = [field.name for field in dataclasses.fields(Progress)]
_OUTCOME = [field.name for field in dataclasses.fields(Outcome) if field.name not in ("result", "reason")]


def encode(record: CellRecord) -> bytes:
    """Return the record as bytes, always the same for the same record."""
    message = stored.CellRecord(
        schema_version=SCHEMA_VERSION, cell=record.cell, updated_at=record.updated_at, epoch=record.epoch
    )
    if record.export is not None:
        export = _values(record.export, _EXPORT) | _values(record.export.progress, _PROGRESS)
        message.export.CopyFrom(stored.Export(phase=record.export.phase, **export))
    if record.last_outcome is not None:
        outcome = record.last_outcome
        values = _values(outcome, _OUTCOME)
        message.last_outcome.CopyFrom(stored.Outcome(result=outcome.result, reason=outcome.reason or "", **values))
    return message.SerializeToString(deterministic=True)


def decode(cell: str, revision: int, data: bytes) -> CellRecord:
    """Return the record that the bytes hold.

    Raises:
        ValueError: if the bytes are damaged, of another cell or of a newer version, or hold an unknown phase or reason.
    """
    try:
        message = stored.CellRecord.FromString(data)
    except DecodeError as error:
        raise ValueError("not a record") from error
    if not 1 <= message.schema_version <= SCHEMA_VERSION:
        raise ValueError(f"a record of version {message.schema_version}: start the version that wrote it")
    if message.cell != cell:
        raise ValueError("the record of another cell")
    return CellRecord(
        cell=cell,
        revision=revision,
        updated_at=message.updated_at,
        epoch=message.epoch,
        export=_export(message.export) if message.HasField("export") else None,
        last_outcome=_outcome(message.last_outcome) if message.HasField("last_outcome") else None,
    )


def _export(message: stored.Export) -> Export:
    progress = Progress(**_values(message, _PROGRESS))
    return Export(phase=Phase(message.phase), progress=progress, **_values(message, _EXPORT))


def _outcome(message: stored.Outcome) -> Outcome:
    reason = Reason(message.reason) if message.reason else None
    return Outcome(result=Result(message.result), reason=reason, **_values(message, _OUTCOME))


def _values(source: object, names: list[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}
