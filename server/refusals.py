"""Every way in which the server refuses a call, as data.

One row is one reason of the contract: the gRPC status, the code in Personium's error list (behaviour of the REST door),
the fixed text, and whether a retry makes sense. The texts never hold what a caller sent.
"""

from dataclasses import dataclass
from enum import Enum

import grpc

from cellexport.v1.error_reason_pb2 import ErrorReason

RETRY_SECONDS = 1


# Not compared by what they hold: an enum would take two reasons that look alike for one.
@dataclass(frozen=True, slots=True, eq=False)
class RefusalSpec:
    status: grpc.StatusCode
    personium_code: str
    text: str
    retry: bool = False
    # Which of the details goes where `{}` is in the text.
    fill: str = ""


class Refusal(Enum):
    """The reasons; each member's name is that of the `ErrorReason` in the contract."""

    REQUEST_KEY_INVALID = RefusalSpec(
        grpc.StatusCode.INVALID_ARGUMENT, "PR400-EV-0002", "Request header is invalid [X-Personium-RequestKey]."
    )
    CREDENTIALS_MISSING = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0001", "Authorization required.")
    SCHEME_UNKNOWN = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0003", "Invalid authentication scheme.")
    BASIC_MALFORMED = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0004", "Basic auth format error.")
    TOKEN_EXPIRED = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0002", "Access token expired.")
    TOKEN_INVALID = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0006", "Token parse error.")
    REFRESH_TOKEN = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0007", "Can not access with refresh token.")
    SIGNATURE_INVALID = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0008", "Token dsig error.")
    COOKIE_REJECTED = RefusalSpec(grpc.StatusCode.UNAUTHENTICATED, "PR401-AU-0009", "Authentication failed.")
    PRIVILEGE_LACKING = RefusalSpec(
        grpc.StatusCode.PERMISSION_DENIED, "PR403-AU-0002", "Necessary privilege is lacking."
    )
    SCOPE_INSUFFICIENT = RefusalSpec(
        grpc.StatusCode.PERMISSION_DENIED,
        "PR403-AU-0007",
        "Insufficient scope is granted for the access token. [{}] Privilege is required.",
        fill="privilege",
    )
    CELL_NOT_FOUND = RefusalSpec(grpc.StatusCode.NOT_FOUND, "PR404-DV-0003", "Cell not found.")
    NAME_INVALID = RefusalSpec(
        grpc.StatusCode.INVALID_ARGUMENT,
        "PR400-CM-0002",
        "Field [Name] format error. Must be [^[a-zA-Z0-9-_]{1,192}$].",
    )
    CLAIM_INVALID = RefusalSpec(grpc.StatusCode.INVALID_ARGUMENT, "PR400-CX-0001", "The claim is malformed.")
    PROGRESS_INVALID = RefusalSpec(grpc.StatusCode.INVALID_ARGUMENT, "PR400-CX-0002", "The progress can't be true.")
    OUTCOME_INVALID = RefusalSpec(
        grpc.StatusCode.INVALID_ARGUMENT, "PR400-CX-0003", "The result and the reason don't go together."
    )
    ALREADY_EXPORTING = RefusalSpec(
        grpc.StatusCode.FAILED_PRECONDITION,
        "PR409-CM-0002",
        "Because [cell export] is being executed, writing to cell can not be done.",
    )
    SNAPSHOT_EXISTS = RefusalSpec(grpc.StatusCode.ALREADY_EXISTS, "PR409-DV-0002", "The snapshot file already exists.")
    NO_SPACE = RefusalSpec(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "PR503-SV-0005",
        "Operation is prohibited as one or more disks are almost full.",
    )
    NOT_EXPORTING = RefusalSpec(grpc.StatusCode.FAILED_PRECONDITION, "PR409-CX-0002", "The cell is not being exported.")
    QUEUE_FULL = RefusalSpec(grpc.StatusCode.RESOURCE_EXHAUSTED, "PR503-SV-0001", "Too many concurrent requests.", True)
    TOO_MANY_WATCHES = RefusalSpec(  # noqa: PIE796 - see RefusalSpec
        grpc.StatusCode.RESOURCE_EXHAUSTED, "PR503-SV-0001", "Too many concurrent requests.", True
    )
    BATCH_TOO_LARGE = RefusalSpec(grpc.StatusCode.INVALID_ARGUMENT, "PR400-CX-0004", "The call names too many cells.")
    REVISION_UNKNOWN = RefusalSpec(
        grpc.StatusCode.OUT_OF_RANGE, "PR400-CX-0005", "The cell has never had that revision."
    )
    EXPORT_NOT_FOUND = RefusalSpec(grpc.StatusCode.NOT_FOUND, "PR404-CX-0001", "The cell has no such export.")
    LEASE_NOT_HELD = RefusalSpec(grpc.StatusCode.PERMISSION_DENIED, "PR403-CX-0001", "The lease is another exporter's.")
    LEASE_LOST = RefusalSpec(grpc.StatusCode.ABORTED, "PR409-CX-0001", "The lease is lost.")
    STORE_UNAVAILABLE = RefusalSpec(
        grpc.StatusCode.UNAVAILABLE, "PR503-SV-0003", "Server error. (Lock Manager) Data lock state unknown.", True
    )
    SERVER_SHUTDOWN = RefusalSpec(grpc.StatusCode.UNAVAILABLE, "PR503-SV-0002", "Server connection error.", True)
    DEADLINE_PASSED = RefusalSpec(grpc.StatusCode.DEADLINE_EXCEEDED, "PR504-SV-0001", "Request timeout in server.")
    DATA_DAMAGED = RefusalSpec(grpc.StatusCode.DATA_LOSS, "PR500-SV-0002", "Datastore unknown error.")
    UNEXPECTED = RefusalSpec(grpc.StatusCode.INTERNAL, "PR500-SV-9999", "Unknown Exception.")

    @property
    def reason(self) -> str:
        return ErrorReason.Name(ErrorReason.Value(self.name))


class Refused(Exception):
    """Raised when a call is refused. Only `guard` looks at it.

    Args:
        refusal: why.
        note: what the operator should know. It goes to the log, never to the caller, and holds no secret.
        details: what goes into the ErrorInfo's metadata besides the Personium code: nothing that was not validated.
    """

    def __init__(self, refusal: Refusal, *, note: str = "", **details: str) -> None:
        super().__init__(refusal.name)
        self.refusal = refusal
        self.note = note
        self.details = details

    @property
    def text(self) -> str:
        row = self.refusal.value
        return row.text.replace("{}", self.details[row.fill]) if row.fill else row.text
