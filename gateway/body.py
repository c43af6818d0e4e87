"""The body of a start: at most 64 KiB of complete JSON.

A WSGI server's read ends only when the client sends or leaves. It can't be cut short: if Granian answers while a thread
still reads, the whole worker stops. So only 8 threads may read at a time. Clients that send nothing can block other
starts, but no status.
"""

import json
import threading
from wsgiref.types import InputStream, WSGIEnvironment

from gateway import errors
from gateway.errors import ApiError

_LIMIT = 64 * 1024
_ECHO_LIMIT = 100
# Far fewer than the threads that serve requests.
_MOST_READERS = 8


class Bodies:
    """A reader of request bodies, with a limit of simultaneous reads."""

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
            # Skip numbers: Python refuses very long ones. Refuse NaN, which is not JSON.
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
