"""Headers that stand in for others: `X-HTTP-Method-Override`, and `X-Override` for callers who can't set real ones.

Caveat: whoever may send `X-Override` may send, in it, the headers named below. An edge in front of this program that
filters or checks such headers (an `Authorization`, say) does not see them there: turn it off with
`CELLEXPORT_X_OVERRIDE=off`. It never reaches `Host`, framing, forwarding headers, the request key or the method.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# Where the application finds why the overrides are to be refused, if they are.
REFUSED = "cellexport.override_refused"

_LONGEST = 8 * 1024
_MOST_PAIRS = 16
_OVERRIDABLE = {
    "authorization": "HTTP_AUTHORIZATION",
    "accept": "HTTP_ACCEPT",
    "cookie": "HTTP_COOKIE",
    "x-personium-unit-user": "HTTP_X_PERSONIUM_UNIT_USER",
}
# A WSGI server joins header lines with commas. Only a comma before a header's name and a colon can be such a one.
_BETWEEN_PAIRS = re.compile(r",(?=[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*:)")


class MethodOverride:
    """Middleware: on a real POST, the method that `X-HTTP-Method-Override` names is the method in every respect.

    Args:
        methods: the methods there are. Any other name, `get` among them, stands for one that there is not.
    """

    def __init__(self, app: WSGIApplication, methods: frozenset[str]) -> None:
        self._app = app
        self._methods = methods

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        named = environ.get("HTTP_X_HTTP_METHOD_OVERRIDE")
        if named and environ["REQUEST_METHOD"] == "POST":
            environ["REQUEST_METHOD"] = named if named in self._methods else "UNKNOWN"
            if named == "HEAD":
                return self._app(environ, _without_length(start_response))
        return self._app(environ, start_response)


class HeaderOverride:
    """Middleware: applies `X-Override`. Too much of it is left to the application to refuse, in its turn."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        text = environ.get("HTTP_X_OVERRIDE")
        if text:
            _apply(text, environ)
        return self._app(environ, start_response)


def _without_length(start_response: StartResponse) -> StartResponse:
    """The client has sent a POST, and would wait for as many bytes as a GET's answer has."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        return start_response(status, kept, exc_info)

    return start


def split(text: str) -> list[str]:
    """The pairs of an `X-Override` as it arrived, however many lines it came in."""
    return _BETWEEN_PAIRS.split(text)


def pairs(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Names and values; what has no colon, or nothing before it, is passed over."""
    for text in texts:
        name, colon, value = text.partition(":")
        if colon and name.strip():
            yield name.strip(), value.strip()


def _apply(text: str, environ: WSGIEnvironment) -> None:
    texts = split(text) if len(text) <= _LONGEST else []
    if not texts:
        environ[REFUSED] = f"longer than {_LONGEST} bytes"
    elif len(texts) > _MOST_PAIRS:
        environ[REFUSED] = f"more than {_MOST_PAIRS} pairs"
    else:
        for name, value in pairs(texts):
            variable = _OVERRIDABLE.get(name.lower())
            if variable is not None:
                environ[variable] = value
