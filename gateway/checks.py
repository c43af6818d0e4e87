"""The checks of a request before routing, in the contract's order.

Each check returns a response, raises `ApiError`, or returns None to let the request pass.
"""

import re

from flask import Response, g, request

from cellexport import request_key
from gateway import errors, overrides
from gateway.errors import ApiError
from gateway.methods import ALLOW

# The longest `Access-Control-Request-Headers` that is repeated in a response, in characters.
_LONGEST_LIST = 1024
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER_NAMES = re.compile(rf"{_NAME}(?:[ \t]*,[ \t]*{_NAME})*")


def take_request_key() -> None:
    """Validate the request key, or generate one. Raise `ApiError` with REQUEST_KEY_INVALID."""
    key = request.headers.get(request_key.HEADER, "")
    g.request_key = key if request_key.is_valid(key) else request_key.generate()
    if key and key != g.request_key:
        raise ApiError(errors.REQUEST_KEY_INVALID)


def refuse_override() -> None:
    """Refuse an `X-Override` that is too large. Raise `ApiError` with HEADER_INVALID."""
    why = request.environ.get(overrides.REFUSED)
    if why:
        raise ApiError(errors.HEADER_INVALID, f"X-Override value is invalid [{why}]")


def answer_preflight() -> Response | None:
    """Answer OPTIONS on any path. A browser sends it without credentials, to ask what a page may request (CORS)."""
    if request.method != "OPTIONS":
        return None
    response = Response()
    del response.headers["Content-Type"]
    response.headers["Allow"] = ALLOW
    response.headers["Access-Control-Allow-Methods"] = ALLOW
    response.headers["Access-Control-Max-Age"] = "86400"
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    if len(wanted) <= _LONGEST_LIST and _HEADER_NAMES.fullmatch(wanted):
        response.headers["Access-Control-Allow-Headers"] = wanted
    return response


def refuse_double_slash() -> None:
    """Raise `ApiError` with URI_UNKNOWN for a path that begins with `//`: the router would treat `//x` as `/x`."""
    if request.environ.get("PATH_INFO", "").startswith("//"):
        raise ApiError(errors.URI_UNKNOWN)


IN_ORDER = (take_request_key, refuse_override, answer_preflight, refuse_double_slash)
