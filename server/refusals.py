"""Every way in which the server refuses a call, as data. It knows nothing of gRPC: see `rpc.refusal_table`.

A refusal is one reason of the contract (`ErrorReason`): the code of Personium's error list, a fixed text, and whether a
retry makes sense. Texts never hold anything that a caller sent.
"""

from dataclasses import dataclass
from enum import Enum


# Specs are compared by identity: otherwise the enum would make two reasons with equal code and text aliases.
@dataclass(frozen=True, slots=True, eq=False)
class RefusalSpec:
    """The data of one refusal.

    Args:
        personium_code: the code in Personium's error list. Its first three digits are the HTTP status.
        text: the message for the caller. `{}` is the only part that is filled in.
        retry: whether the same call may succeed later.
        fill: the name of the detail that replaces `{}`.
    """

    personium_code: str
    text: str
    retry: bool = False
    fill: str = ""


class Refusal(Enum):
    """The reasons. Each member has the name of its `ErrorReason` in the contract."""

    REQUEST_KEY_INVALID = RefusalSpec("PR400-EV-0002", "Request header is invalid [X-Personium-RequestKey].")
    CREDENTIALS_MISSING = RefusalSpec("PR401-AU-0001", "Authorization required.")
    SCHEME_UNKNOWN = RefusalSpec("PR401-AU-0003", "Invalid authentication scheme.")
    BASIC_MALFORMED = RefusalSpec("PR401-AU-0004", "Basic auth format error.")
    TOKEN_EXPIRED = RefusalSpec("PR401-AU-0002", "Access token expired.")
    TOKEN_INVALID = RefusalSpec("PR401-AU-0006", "Token parse error.")
    REFRESH_TOKEN = RefusalSpec("PR401-AU-0007", "Can not access with refresh token.")
    SIGNATURE_INVALID = RefusalSpec("PR401-AU-0008", "Token dsig error.")
    COOKIE_REJECTED = RefusalSpec("PR401-AU-0009", "Authentication failed.")
    PRIVILEGE_LACKING = RefusalSpec("PR403-AU-0002", "Necessary privilege is lacking.")
    SCOPE_INSUFFICIENT = RefusalSpec(
        "PR403-AU-0007",
        "Insufficient scope is granted for the access token. [{}] Privilege is required.",
        fill="privilege",
    )
    CELL_NOT_FOUND = RefusalSpec("PR404-DV-0003", "Cell not found.")
    NAME_INVALID = RefusalSpec("PR400-CM-0002", "Field [Name] format error. Must be [^[a-zA-Z0-9-_]{1,192}$].")
    CLAIM_INVALID = RefusalSpec("PR400-CX-0001", "The claim is malformed.")
    PROGRESS_INVALID = RefusalSpec("PR400-CX-0002", "The progress can't be true.")
    OUTCOME_INVALID = RefusalSpec("PR400-CX-0003", "The result and the reason don't go together.")
    ALREADY_EXPORTING = RefusalSpec(
        "PR409-CM-0002", "Because [cell export] is being executed, writing to cell can not be done."
    )
    SNAPSHOT_EXISTS = RefusalSpec("PR409-DV-0002", "The snapshot file already exists.")
    NO_SPACE = RefusalSpec("PR503-SV-0005", "Operation is prohibited as one or more disks are almost full.")
    NOT_EXPORTING = RefusalSpec("PR409-CX-0002", "The cell is not being exported.")
    QUEUE_FULL = RefusalSpec("PR503-SV-0001", "Too many concurrent requests.", retry=True)
    TOO_MANY_WATCHES = RefusalSpec(  # noqa: PIE796 - see RefusalSpec
        "PR503-SV-0001", "Too many concurrent requests.", retry=True
    )
    BATCH_TOO_LARGE = RefusalSpec("PR400-CX-0004", "The call names too many cells.")
    REVISION_UNKNOWN = RefusalSpec("PR400-CX-0005", "The cell has never had that revision.")
    EXPORT_NOT_FOUND = RefusalSpec("PR404-CX-0001", "The cell has no such export.")
    LEASE_NOT_HELD = RefusalSpec("PR403-CX-0001", "The lease is another exporter's.")
    LEASE_LOST = RefusalSpec("PR409-CX-0001", "The lease is lost.")
    STORE_UNAVAILABLE = RefusalSpec(
        "PR503-SV-0003", "Server error. (Lock Manager) Data lock state unknown.", retry=True
    )
    SERVER_SHUTDOWN = RefusalSpec("PR503-SV-0002", "Server connection error.", retry=True)
    DEADLINE_PASSED = RefusalSpec("PR504-SV-0001", "Request timeout in server.")
    DATA_DAMAGED = RefusalSpec("PR500-SV-0002", "Datastore unknown error.")
    UNEXPECTED = RefusalSpec("PR500-SV-9999", "Unknown Exception.")


class Refused(Exception):
    """Raised when a call is refused. Only the guard (`rpc.guard`) turns it into an answer.

    Args:
        refusal: the reason.
        note: a hint for the operator. It is logged, never sent to the caller, and holds no secret.
        details: metadata for the ErrorInfo besides the Personium code: validated values only.
    """

    def __init__(self, refusal: Refusal, *, note: str = "", **details: str) -> None:
        super().__init__(refusal.name)
        self.refusal = refusal
        self.note = note
        self.details = details

    @property
    def text(self) -> str:
        """Return the message for the caller, with its detail filled in."""
        spec = self.refusal.value
        return spec.text.replace("{}", self.details[spec.fill]) if spec.fill else spec.text
