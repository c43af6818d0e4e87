"""How an export ended: which result goes with a reason, and the words for both."""

from cellexport.v1.cell_export_pb2 import Outcome

_INTERRUPTIONS = frozenset({Outcome.REASON_SHUTDOWN, Outcome.REASON_CANCELLED})


def result_of(why: Outcome.Reason.ValueType) -> Outcome.Result.ValueType:
    """The result that a reason of ours goes with: REASON_UNSPECIFIED with a success."""
    if why == Outcome.REASON_UNSPECIFIED:
        return Outcome.RESULT_SUCCEEDED
    return Outcome.RESULT_INTERRUPTED if why in _INTERRUPTIONS else Outcome.RESULT_FAILED


def told(result: Outcome.Result.ValueType, why: Outcome.Reason.ValueType) -> dict[str, str]:
    """Both in the words of the server's log and of notes. The reason is empty for a success."""
    reason = Outcome.Reason.Name(why).removeprefix("REASON_") if why else ""
    return {"result": Outcome.Result.Name(result).removeprefix("RESULT_"), "reason": reason}
