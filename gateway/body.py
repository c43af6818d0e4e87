"""Reads the body of a request that starts an export: at most 64 KiB of complete JSON.

Reading a body ends only when the client sends the rest or leaves. No time limit is possible: if Granian answers while
a thread still reads, the whole worker stops. So only 8 threads may read at a time. Clients that send nothing can block
other starts of exports, but no request for a status.
"""

import json
import threading
from wsgiref.types import InputStream, WSGIEnvironment

from gateway import errors
from gateway.errors import ApiError

_LIMIT = 64 * 1024
# The characters of an invalid body that the error message repeats.
_ECHO_LIMIT = 100
# Far fewer than the 32 threads that serve requests, so that slow bodies leave threads for requests for a status.
_MOST_READERS = 8


class Bodies:
    """A reader of request bodies. At most 8 bodies are read at a time."""

    def __init__(self) -> None:
        self._readers = threading.BoundedSemaphore(_MOST_READERS)

    def name(self, environ: WSGIEnvironment) -> str | None:
        """Return the `Name` in a request's body, or None if there is none.

        Raises:
            ApiError: BODY_TOO_LARGE, BODY_NO_JSON, NAME_INVALID, TOO_MANY
        """
        body = self._read(environ)
        if not body:
            return None
        try:
            # Don't convert numbers: Python refuses very long ones, which are valid JSON. Refuse NaN, which is not JSON.
            content = json.loads(body.decode(), parse_int=_number, parse_float=_number, parse_constant=_refuse)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise _no_json(body)
        name = content.get("Name")
        if name is not None and not isinstance(name, str):
            raise ApiError(errors.NAME_INVALID)
        return name if name is None else name.encode("utf-8", "replace").decode()

    def _read(self, environ: WSGIEnvironment) -> bytes:
        length = environ.get("CONTENT_LENGTH") or ""
        if not length and not environ.get("HTTP_TRANSFER_ENCODING"):
            return b""
        announced = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None
        if (announced is None and length) or (announced or 0) > _LIMIT:
            raise ApiError(errors.BODY_TOO_LARGE)
        if announced == 0:
            return b""
        body = self._read_up_to(environ["wsgi.input"], announced or _LIMIT + 1)
        if len(body) > _LIMIT:
            raise ApiError(errors.BODY_TOO_LARGE)
        # The client sent fewer bytes than announced, or broken chunks.
        if not body or (announced is not None and len(body) < announced):
            raise _no_json(body)
        return body

    def _read_up_to(self, stream: InputStream, size: int) -> bytes:
        if not self._readers.acquire(blocking=False):
            raise ApiError(errors.TOO_MANY)
        try:
            return stream.read(size)
        except OSError:
            return b""
        finally:
            self._readers.release()


def _number(_: str) -> int:
    return 0


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _no_json(body: bytes) -> ApiError:
    return ApiError(errors.BODY_NO_JSON, body.decode("utf-8", "replace")[:_ECHO_LIMIT])
