"""The result of an export for each reason, and the names of both for logs and error notes."""

from cellexport.v1.cell_export_pb2 import Outcome

_INTERRUPTIONS = frozenset({Outcome.REASON_SHUTDOWN, Outcome.REASON_CANCELLED})


def result_of(why: Outcome.Reason.ValueType) -> Outcome.Result.ValueType:
    """Return the result for a reason that this exporter gives. REASON_UNSPECIFIED means success."""
    if why == Outcome.REASON_UNSPECIFIED:
        return Outcome.RESULT_SUCCEEDED
    return Outcome.RESULT_INTERRUPTED if why in _INTERRUPTIONS else Outcome.RESULT_FAILED


def named(result: Outcome.Result.ValueType, why: Outcome.Reason.ValueType) -> dict[str, str]:
    """Return the names of both as the server's log and the error notes write them. A success has an empty reason."""
    reason = Outcome.Reason.Name(why).removeprefix("REASON_") if why else ""
    return {"result": Outcome.Result.Name(result).removeprefix("RESULT_"), "reason": reason}
