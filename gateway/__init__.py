"""The REST facade: `GET /{CellName}/__export` over HTTP, in front of the gRPC service. The server decides
about tokens and exports, never the gateway.

- Middleware, outermost first: `neutral`, `request_observer`, `overrides`.
- `checks` run before routing. `views` are the endpoints. `body` reads the JSON of a request that starts an export.
- `forwarding` makes the metadata of a call to the server. `upstream` calls it. `readiness` checks the server's health.
- `render` makes bodies, `responses` headers. `errors` and `call_errors` list errors, and `error_responses` sends them.
- `create_app` makes a plain WSGI application; `python -m gateway` serves it with `granian_server`.

The gateway may import `cellexport`, and nothing of the server.
"""

import atexit
import os
from wsgiref.types import WSGIApplication

from flask import Flask

from cellexport.program import traces
from gateway import checks
from gateway.error_responses import ErrorResponses
from gateway.methods import METHODS
from gateway.metrics import Metrics, NoMetrics
from gateway.neutral import Neutral
from gateway.overrides import HeaderOverride, MethodOverride
from gateway.readiness import Readiness
from gateway.request_observer import RequestObserver, note_request
from gateway.responses import common_headers
from gateway.settings import Settings
from gateway.upstream import Upstream
from gateway.views import Views


def create_app(settings: Settings | None = None, metrics: Metrics | None = None) -> WSGIApplication:
    """Return the gateway as a WSGI application, for any WSGI server.

    Args:
        settings: read from the environment if omitted.
        metrics: counts requests and calls to the server; nothing is counted if omitted.

    Raises:
        SettingError: if a setting has a bad value.
    """
    settings = settings or Settings.read(os.environ)
    metrics = metrics or NoMetrics()
    spans = traces.open_spans("cellexport-gateway", on=settings.traces)
    if spans is not None:
        atexit.register(spans.close)
    upstream = Upstream(settings.target, settings.tls, metrics.count_call)
    readiness = Readiness(settings.target, settings.tls)
    error_responses = ErrorResponses(settings.urls)
    views = Views(urls=settings.urls, upstream=upstream, readiness=readiness, error_responses=error_responses)

    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    for check in checks.IN_ORDER:
        app.before_request(check)
    views.register(app)
    error_responses.register(app)
    app.after_request(common_headers(settings.personium_version))
    app.after_request(note_request)

    methods = frozenset(METHODS)
    overridden = HeaderOverride(app) if settings.x_override else app
    return Neutral(RequestObserver(MethodOverride(overridden, methods), methods, spans, metrics))
