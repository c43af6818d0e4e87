"""Sees every request from its beginning to its end: for metrics, for traces, and for the log.

Caveat: it believes whoever says `traceparent`, as far as that goes: a caller can name the trace that his request is
found under, and have it recorded where the sampler leaves that to callers. It gives no right to anything.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Response, g, request

from cellexport.program import logs, tracing
from cellexport.program.tracing import Span, Spans
from gateway.metrics import Metrics

# Where `forwarding` finds what the server is told of the trace.
TRACEPARENT = "cellexport.traceparent"
_ROUTE = "cellexport.route"
_KEY = "cellexport.request_key"
_OTHER = "other"


def note_request(response: Response) -> Response:
    """Tell the middleware below what only the application knows: to call after each request."""
    request.environ[_ROUTE] = request.url_rule.rule if request.url_rule else _OTHER
    request.environ[_KEY] = g.get("request_key")
    return response


class RequestObserver:
    """Middleware.

    Args:
        methods: the methods there are; any other is counted as `other`.
        spans: None if traces are off.
        metrics: None if nobody reads them.
    """

    def __init__(
        self, app: WSGIApplication, methods: frozenset[str], spans: Spans | None, metrics: Metrics | None
    ) -> None:
        self._app = app
        self._methods = methods
        self._spans = spans
        self._metrics = metrics

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        traceparent = tracing.valid(environ.get("HTTP_TRACEPARENT"))
        span = self._begin(environ, traceparent)
        if span is not None:
            traceparent = span.traceparent
        if traceparent is None:
            return self._measured(environ, start_response, None)
        environ[TRACEPARENT] = traceparent
        with logs.marked(trace_id=tracing.trace_id(traceparent)):
            return self._measured(environ, start_response, span)

    def _measured(self, environ: WSGIEnvironment, start_response: StartResponse, span: Span | None) -> Iterable[bytes]:
        if span is None and self._metrics is None:
            return self._app(environ, start_response)
        began = time.perf_counter()
        status = "500"

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
            nonlocal status
            status = line[:3]
            return start_response(line, headers, exc_info)

        if self._metrics is not None:
            self._metrics.in_flight.inc()
        try:
            # The body is whole by now: no answer of ours is made while it is sent.
            return self._app(environ, start)
        finally:
            self._end(environ, status, time.perf_counter() - began, span)

    def _begin(self, environ: WSGIEnvironment, traceparent: str | None) -> Span | None:
        if self._spans is None:
            return None
        state = tracing.valid_state(environ.get("HTTP_TRACESTATE"))
        return self._spans.serve("HTTP", traceparent, state, {"url.scheme": environ["wsgi.url_scheme"]})

    def _end(self, environ: WSGIEnvironment, status: str, seconds: float, span: Span | None) -> None:
        # As the overrides have left it.
        method = environ["REQUEST_METHOD"]
        method = method if method in self._methods else _OTHER
        route = environ.get(_ROUTE, _OTHER)
        if self._metrics is not None:
            self._metrics.in_flight.dec()
            self._metrics.count_request(method, route, status, seconds)
        if span is not None:
            _end_span(span, "HTTP" if method == _OTHER else method, route, status, environ.get(_KEY))


def _end_span(span: Span, method: str, route: str, status: str, key: str | None) -> None:
    """By OpenTelemetry's conventions, of which one is that only what is the server's fault has failed."""
    attributes: dict[str, str | int] = {
        "http.request.method": "_OTHER" if method == "HTTP" else method,
        "http.response.status_code": int(status),
    }
    attributes |= {} if route == _OTHER else {"http.route": route}
    attributes |= {_KEY: key} if key else {}
    name = method if route == _OTHER else f"{method} {route}"
    span.end(attributes, failed=status >= "500", name=name)
