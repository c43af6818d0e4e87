"""Responses with JSON bodies, and the headers that every response has."""

from collections.abc import Callable

from flask import Response, g

from cellexport import request_key

# The response headers that a page of another origin may read in a browser (CORS).
_EXPOSED = (
    "X-Personium-Version, X-Personium-RequestKey, WWW-Authenticate, Location, Retry-After, ETag, Preference-Applied"
)


def json_response(body: str, status: int = 200) -> Response:
    """Return a response with the body, which is a text in JSON."""
    return Response(body, status=status, content_type="application/json")


def common_headers(personium_version: str) -> Callable[[Response], Response]:
    """Return a function that adds to a response the headers that every response has, errors included."""

    def add(response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "*"
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers["X-Personium-Version"] = personium_version
        response.headers[request_key.HEADER] = g.request_key
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return add
