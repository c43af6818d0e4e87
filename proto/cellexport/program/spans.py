"""Spans by OpenTelemetry, sent over OTLP. Imported only when traces are on: the packages are an extra."""

import os
import threading

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cellexport.program.tracing import TRACEPARENT, TRACESTATE, Attributes, Span

# How long `close` waits until the last spans are sent.
_FAREWELL_SECONDS = 1.0
_PROPAGATOR = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()


class RecordedSpans:
    """Spans from a tracer provider that only this program uses. It sets no global provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("cellexport")

    @classmethod
    def to_collector(cls, program: str) -> "RecordedSpans":
        """Return spans that are sent to a collector. If the collector is too slow, spans are dropped."""
        # `OTEL_SERVICE_NAME` takes precedence over the program's name.
        name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": program}
        provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def serve(self, name: str, traceparent: str | None, tracestate: str | None, attributes: Attributes) -> Span:
        parent = _NO_CONTEXT
        if traceparent is not None:
            carrier = {TRACEPARENT: traceparent} | ({TRACESTATE: tracestate} if tracestate else {})
            parent = _PROPAGATOR.extract(carrier, _NO_CONTEXT)
        return _Recorded(self._tracer.start_span(name, parent, SpanKind.SERVER, dict(attributes)))

    def close(self) -> None:
        # Shut down in a thread, because the provider waits longer for a collector that can't be reached.
        farewell = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_SECONDS)


class _Recorded:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, _NO_CONTEXT))
        self.traceparent = carrier[TRACEPARENT]

    def end(self, attributes: Attributes, *, failed: bool, name: str | None = None) -> None:
        if name is not None:
            self._span.update_name(name)
        self._span.set_attributes(dict(attributes))
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
