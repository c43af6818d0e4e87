"""The result that belongs to each reason for an export's end, and the names of results and reasons in logs."""

from cellexport.outcomes import INTERRUPTIONS
from cellexport.v1.cell_export_pb2 import Outcome


def result_of(why: Outcome.Reason.ValueType) -> Outcome.Result.ValueType:
    """Return the result for a reason that this exporter gives. REASON_UNSPECIFIED means success."""
    if why == Outcome.REASON_UNSPECIFIED:
        return Outcome.RESULT_SUCCEEDED
    return Outcome.RESULT_INTERRUPTED if _name(why) in INTERRUPTIONS else Outcome.RESULT_FAILED


def fields_of(result: Outcome.Result.ValueType, why: Outcome.Reason.ValueType) -> dict[str, str]:
    """Return the names of an export's result and reason, for logs and error notes. `reason` is empty for a success."""
    return {"result": Outcome.Result.Name(result).removeprefix("RESULT_"), "reason": _name(why) if why else ""}


def _name(why: Outcome.Reason.ValueType) -> str:
    return Outcome.Reason.Name(why).removeprefix("REASON_")
