"""Every error of the REST door, as data: reasons and statuses of the contract to codes and texts of the document.

The HTTP status is in the code's first three digits. The texts are fixed, but for what `{}` stands for.
"""

from dataclasses import dataclass

import grpc

from cellexport import client

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the error list.

    `invalid_token` says that a 401 is about a token that was presented (RFC 6750); `retry` that trying again helps.
    """

    code: str
    message: str
    invalid_token: bool = False
    retry: bool = False

    @property
    def status(self) -> int:
        return int(self.code[2:5])


class ApiError(Exception):
    """Raised when a request ends in an error of the list.

    Args:
        problem: the row.
        fill: what `{}` in its text stands for.
    """

    def __init__(self, problem: Problem, fill: str = "") -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.message = problem.message.replace("{}", fill)


URI_UNKNOWN = Problem("PR404-MC-0001", "URI is not recognized.")
METHOD_NOT_ALLOWED = Problem("PR405-MC-0001", "Method not allowed.")
REQUEST_KEY_INVALID = Problem("PR400-EV-0002", "Request header is invalid [X-Personium-RequestKey].")
HEADER_INVALID = Problem("PR400-OD-0041", "Request header {}.")
BODY_NO_JSON = Problem("PR400-CM-0004", "JSON parse error. [{}].")
NAME_INVALID = Problem("PR400-CM-0002", "Field [Name] format error. Must be [^[a-zA-Z0-9-_]{1,192}$].")
BODY_TOO_LARGE = Problem("PR413-CM-0001", "Request body is too large.")
TOO_MANY = Problem("PR503-SV-0001", "Too many concurrent requests.", retry=True)
SERVER_AWAY = Problem("PR503-SV-0002", "Server connection error.", retry=True)
DEADLINE = Problem("PR504-SV-0001", "Request timeout in server.")
UNEXPECTED = Problem("PR500-SV-9999", "Unknown Exception [{}]")

_BY_REASON = {
    "REQUEST_KEY_INVALID": REQUEST_KEY_INVALID,
    "CREDENTIALS_MISSING": Problem("PR401-AU-0001", "Authorization required."),
    "SCHEME_UNKNOWN": Problem("PR401-AU-0003", "Invalid authentication scheme."),
    "BASIC_MALFORMED": Problem("PR401-AU-0004", "Basic auth format error."),
    "COOKIE_REJECTED": Problem("PR401-AU-0009", "Authentication failed."),
    "TOKEN_EXPIRED": Problem("PR401-AU-0002", "Access token expired.", invalid_token=True),
    "REFRESH_TOKEN": Problem("PR401-AU-0007", "Can not access with refresh token.", invalid_token=True),
    "SIGNATURE_INVALID": Problem("PR401-AU-0008", "Token dsig error.", invalid_token=True),
    "TOKEN_INVALID": Problem("PR401-AU-0006", "Token parse error.", invalid_token=True),
    "PRIVILEGE_LACKING": Problem("PR403-AU-0002", "Necessary privilege is lacking."),
    "SCOPE_INSUFFICIENT": Problem(
        "PR403-AU-0007", "Insufficient scope is granted for the access token. [root] Privilege is required."
    ),
    "CELL_NOT_FOUND": Problem("PR404-DV-0003", "Cell not found."),
    "NAME_INVALID": NAME_INVALID,
    "SNAPSHOT_EXISTS": Problem("PR409-DV-0002", "File [{}.zip] already exists."),
    "ALREADY_EXPORTING": Problem(
        "PR409-CM-0002", "Because [cell export] is being executed, writing to cell can not be done."
    ),
    "QUEUE_FULL": TOO_MANY,
    "NO_SPACE": Problem("PR503-SV-0005", "Operation is prohibited as one or more disks are almost full."),
    "STORE_UNAVAILABLE": Problem("PR503-SV-0003", "Server error. (Lock Manager) Data lock state unknown.", retry=True),
    "SERVER_SHUTDOWN": SERVER_AWAY,
    "DEADLINE_PASSED": DEADLINE,
    "DATA_DAMAGED": Problem("PR500-SV-0002", "Datastore unknown error."),
    "UNEXPECTED": UNEXPECTED,
}

# What grpc itself says, where the server's own code had no part in it.
_BY_STATUS = {
    grpc.StatusCode.UNAVAILABLE: SERVER_AWAY,
    # A server that is ending lets go of calls so.
    grpc.StatusCode.CANCELLED: SERVER_AWAY,
    grpc.StatusCode.DEADLINE_EXCEEDED: DEADLINE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TOO_MANY,
}

# Which entry of the ErrorInfo's metadata fills a text in.
_FILLS = {"SNAPSHOT_EXISTS": "name", "UNEXPECTED": "error_id"}


def from_call(error: grpc.RpcError) -> ApiError | None:
    """What a failed call means over HTTP, or None if nothing is known of such an error."""
    info = client.error_info(error)
    if info is not None and info.reason in _BY_REASON:
        return ApiError(_BY_REASON[info.reason], info.metadata.get(_FILLS.get(info.reason, ""), ""))
    problem = _BY_STATUS.get(error.code())
    return None if problem is None else ApiError(problem)
