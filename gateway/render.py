"""Bodies of responses, as compact JSON: the status and the errors in the words of Personium's API document."""

import json
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from cellexport.v1.cell_export_pb2 import CellExport


def status(cell_export: CellExport) -> str:
    """Return the status as the API document defines it: one key when ready, four while an export is in progress.

    Raises:
        ValueError: if the server sends a state that this version doesn't know: an error is better than a guess.
    """
    if cell_export.state == CellExport.STATE_READY:
        return _json({"status": "ready"})
    if cell_export.state != CellExport.STATE_EXPORTING:
        raise ValueError("the server answered with an unknown state")
    exportation = cell_export.exportation
    return _json(
        {
            "status": "exportation in progress",
            "started_at": _time(exportation.start_time),
            "progress": f"{exportation.progress_percent}%",
            "exportation_name": exportation.name,
        }
    )


def operational() -> str:
    """Return the body of a successful probe (`/livez`, `/readyz`). The API document has no probes."""
    return _json({"status": "ok"})


def error(code: str, message: str) -> str:
    """Return the body of an error."""
    return _json({"code": code, "message": {"lang": "en", "value": message}})


def _time(timestamp: Timestamp) -> str:
    """Return the time in ISO 8601 and UTC, always with three digits of milliseconds."""
    whole = datetime.fromtimestamp(timestamp.seconds, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{timestamp.nanos // 1_000_000:03}Z"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
