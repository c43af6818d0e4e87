"""Middleware that hides the request headers `Host` and `Upgrade`. Flask's router fails on some of their values.

Caveat: the application never sees the real `Host`. URLs in responses come from the settings.
"""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class Neutral:
    """Middleware that replaces `Host`, which may be missing or malformed, by `localhost`, and removes `Upgrade`."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["HTTP_HOST"] = "localhost"
        environ.pop("HTTP_UPGRADE", None)
        return self._app(environ, start_response)
