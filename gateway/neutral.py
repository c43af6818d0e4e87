"""Middleware that hides request headers on which nothing here depends, and over which the router would stumble.

Caveat: the application never sees the real `Host`. URLs in answers come from the settings.
"""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class Neutral:
    """Replaces `Host`, which may be missing or malformed, and removes `Upgrade`."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["HTTP_HOST"] = "localhost"
        environ.pop("HTTP_UPGRADE", None)
        return self._app(environ, start_response)
