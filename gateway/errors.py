"""The errors that only the REST facade raises, as data. All other errors come from the server: see `call_errors`.

The first three digits of a code are the HTTP status. A message is a fixed text, in which a detail may replace `{}`.
"""

from dataclasses import dataclass

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of the REST facade: its code and its message.

    Args:
        invalid_token: whether a 401 means that the presented token is invalid (RFC 6750), not that a token is missing.
        retry: whether the response has the header `Retry-After`.
    """

    code: str
    message: str
    invalid_token: bool = False
    retry: bool = False

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return int(self.code[2:5])


class ApiError(Exception):
    """Raised when a request is answered with an error.

    Args:
        fill: replaces `{}` in the message; None leaves the message as it is.
    """

    def __init__(self, problem: Problem, fill: str | None = None) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.message = problem.message if fill is None else problem.message.replace("{}", fill)


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

# The answers if a newer server refuses a call for a reason that this gateway doesn't know, and sends no code.
REFUSED_AS_INVALID = Problem("PR400-CX-0000", "The server refused the request as invalid.")
REFUSED_AS_UNAUTHENTICATED = Problem("PR401-AU-0001", "Authorization required.")
REFUSED_AS_FORBIDDEN = Problem("PR403-AU-0002", "Necessary privilege is lacking.")
REFUSED_AS_NOT_FOUND = Problem("PR404-CX-0000", "The server did not find the resource.")
REFUSED_AS_CONFLICT = Problem("PR409-CX-0000", "The server refused the request in the present state.")
