"""The facade: `GET /{CellName}/__export` over HTTP, in front of the gRPC service.

It knows HTTP, the words of the document, and the stub; it decides nothing and adds no authority. The way of a request:

    `observation` the request as metrics, traces and the log see it, from outside all else
    `overrides`  headers that stand in for others, before anything else looks at them
    `views`      routes, the order of checks, headers
    `forwarding` what of the request the server gets to know
    `body`       what a start may say
    `upstream`   the call, and its deadline
    `readiness`  whether there is a server to serve with
    `render`     the status in the document's words
    `errors`     every error, as data: reasons of the contract to bodies of the document

`create_app` makes a plain WSGI application for any server; `python -m gateway` serves it with Granian.
"""

import atexit
import os
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

from cellexport.program import traces
from gateway.metrics import Metrics
from gateway.overrides import HeaderOverride, MethodOverride
from gateway.readiness import Readiness
from gateway.request_observer import RequestObserver, note_request
from gateway.settings import Settings
from gateway.upstream import Upstream
from gateway.views import METHODS, register


def create_app(settings: Settings | None = None, metrics: Metrics | None = None) -> WSGIApplication:
    """The application, for any WSGI server.

    Args:
        settings: read from the environment if left out.
        metrics: where requests are counted, if they are. Whoever makes them serves them.

    Raises:
        SettingError: if a setting has a bad value.
    """
    settings = settings or Settings.read(os.environ)
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    spans = traces.open_spans("cellexport-gateway", on=settings.traces)
    if spans is not None:
        atexit.register(spans.close)
    upstream = Upstream(settings.target, settings.tls, metrics and metrics.count_call)
    register(app, settings, upstream, Readiness(settings.target, settings.tls))
    app.after_request(note_request)
    overridden = HeaderOverride(app) if settings.x_override else app
    methods = frozenset(METHODS)
    return _Neutral(RequestObserver(MethodOverride(overridden, methods), methods, spans, metrics))


class _Neutral:
    """Middleware: hides what nothing here depends on and the router would trip over.

    That is the host that a request names, which may be none, and an offer to speak another protocol.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["HTTP_HOST"] = "localhost"
        environ.pop("HTTP_UPGRADE", None)
        return self._app(environ, start_response)
