"""Middleware that observes every request from beginning to end, for metrics, traces and the log.

Caveat: it trusts the caller's `traceparent` header. With this header a caller chooses the trace id of its request, and
decides whether the trace is recorded if the sampler follows callers. The header grants no rights.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Response, g, request

from cellexport.program import logs, tracing
from cellexport.program.tracing import Span, Spans
from gateway.metrics import Metrics

# Keys of the WSGI environ. `forwarding` reads the first one, and sends the value to the server as `traceparent`.
TRACEPARENT = "cellexport.traceparent"
_ROUTE = "cellexport.route"
_KEY = "cellexport.request_key"
_OTHER = "other"


def note_request(response: Response) -> Response:
    """Leave the route and the request key in the WSGI environ, where `RequestObserver` reads them. Return the response.

    The application calls this after each request: only the application knows both.
    """
    request.environ[_ROUTE] = request.url_rule.rule if request.url_rule else _OTHER
    request.environ[_KEY] = g.get("request_key")
    return response


class RequestObserver:
    """WSGI middleware that counts and times each request, and makes a span for it.

    Args:
        methods: the known HTTP methods. Every other method is counted as `other`.
        spans: None if traces are off.
    """

    def __init__(self, app: WSGIApplication, methods: frozenset[str], spans: Spans | None, metrics: Metrics) -> None:
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
        began = time.perf_counter()
        status = "500"

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
            nonlocal status
            status = line[:3]
            return start_response(line, headers, exc_info)

        self._metrics.begin_request()
        try:
            # No response is streamed, so the request ends when the application returns.
            return self._app(environ, start)
        finally:
            self._end(environ, status, time.perf_counter() - began, span)

    def _begin(self, environ: WSGIEnvironment, traceparent: str | None) -> Span | None:
        if self._spans is None:
            return None
        state = tracing.valid_state(environ.get("HTTP_TRACESTATE"))
        return self._spans.serve("HTTP", traceparent, state, {"url.scheme": environ["wsgi.url_scheme"]})

    def _end(self, environ: WSGIEnvironment, status: str, seconds: float, span: Span | None) -> None:
        # The overrides may have replaced the method meanwhile.
        method = environ["REQUEST_METHOD"]
        method = method if method in self._methods else _OTHER
        route = environ.get(_ROUTE, _OTHER)
        self._metrics.end_request(method, route, status, seconds)
        if span is not None:
            _end_span(span, "HTTP" if method == _OTHER else method, route, status, environ.get(_KEY))


def _end_span(span: Span, method: str, route: str, status: str, key: str | None) -> None:
    """End a span with the names of OpenTelemetry's conventions for HTTP. Only a 5xx counts as failed."""
    attributes: dict[str, str | int] = {
        "http.request.method": "_OTHER" if method == "HTTP" else method,
        "http.response.status_code": int(status),
    }
    attributes |= {} if route == _OTHER else {"http.route": route}
    attributes |= {_KEY: key} if key else {}
    name = method if route == _OTHER else f"{method} {route}"
    span.end(attributes, failed=status >= "500", name=name)
