"""A gRPC interceptor that observes every call from beginning to end, for metrics, traces and the log.

It changes and refuses no call.

The outcome of a call is read when the call's task is over. That happens exactly once, whether the call ended by an
answer, an abort, an exception, its caller, or the server's shutdown.
"""

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from cellexport.program import logs, tracing
from cellexport.program.tracing import TRACESTATE, Span, Spans
from server.ops.metrics import CallMetrics, MethodMetrics
from server.rpc import call_context
from server.rpc.call_context import Context

# Only methods of the cellexport services, whose paths begin like this, get spans of traces.
_OURS = "/cellexport."
# The statuses that OpenTelemetry's conventions count as the server's fault.
_FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Unary = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncIterator[Any]]

_log = logging.getLogger(__name__)


class CallObserver(grpc.aio.ServerInterceptor):
    """The interceptor of all calls. All handlers of the server are coroutine functions or asynchronous generators.

    Args:
        spans: records spans of traces; None if traces are off.
    """

    def __init__(self, spans: Spans | None, metrics: CallMetrics) -> None:
        self._spans = spans
        self._metrics = metrics
        # By method: the handler as grpc knows it, and the observed handler.
        self._observed: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            self._metrics.count_unknown()
            return None
        observed = self._observed.get(method)
        # The handler runs in this same task, so its log lines carry this trace id, too.
        traceparent = call_context.traceparent(handler_call_details.invocation_metadata)
        if traceparent is not None:
            logs.mark(trace_id=tracing.trace_id(traceparent))
        if observed is None or observed[0] is not handler:
            observed = self._observed[method] = (handler, self._observe(method, handler))
        return observed[1]

    def _observe(self, path: str, handler: Handler) -> Handler:
        service, _, method = path[1:].partition("/")
        spans = self._spans if path.startswith(_OURS) else None
        if handler.response_streaming and spans is None and not self._metrics.enabled:
            # Observing a watch costs a kilobyte of memory, and thousands of watches may be open.
            return handler
        metrics = self._metrics.of(_kind(handler), service, method)
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        method_observer = _Method(path, attributes, spans, metrics)
        name = f"{'stream' if handler.request_streaming else 'unary'}_"
        name += "stream" if handler.response_streaming else "unary"
        behaviour = getattr(handler, name)
        if inspect.isasyncgenfunction(behaviour):
            behaviour = method_observer.yielding(behaviour)
        elif inspect.iscoroutinefunction(behaviour):
            observe = method_observer.writing if handler.response_streaming else method_observer.answering
            behaviour = observe(behaviour)
        make = getattr(grpc, f"{name}_rpc_method_handler")
        observed: Handler = make(behaviour, handler.request_deserializer, handler.response_serializer)
        return observed


def _kind(handler: Handler) -> str:
    if handler.request_streaming:
        return "bidi_stream" if handler.response_streaming else "client_stream"
    return "server_stream" if handler.response_streaming else "unary"


class _Method:
    """A gRPC method, with the wrappers that observe its calls."""

    def __init__(self, path: str, attributes: tracing.Attributes, spans: Spans | None, metrics: MethodMetrics) -> None:
        self.path = path
        self.attributes = attributes
        self.spans = spans
        self.metrics = metrics

    def answering(self, behaviour: Unary) -> Unary:
        async def answer(request: Any, context: Context) -> Any:
            call = _Call(self, context)
            try:
                response = await behaviour(call.receive(request), context)
            except Exception:
                call.raised = True
                raise
            call.count_sent()
            return response

        return answer

    def yielding(self, behaviour: Stream) -> Stream:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            call = _Call(self, context)
            try:
                async for response in behaviour(call.receive(request), context):
                    call.count_sent()
                    yield response
            except Exception:
                call.raised = True
                raise

        return stream

    def writing(self, behaviour: Callable[[Any, Any], Awaitable[None]]) -> Unary:
        async def stream(request: Any, context: Context) -> None:
            call = _Call(self, context)
            try:
                await behaviour(call.receive(request), _CountingContext(context, call))
            except Exception:
                call.raised = True
                raise

        return stream


class _Call:
    """One observed call. It ends when its task is over."""

    __slots__ = ("_began", "_method", "_span", "raised")

    def __init__(self, method: _Method, context: Context) -> None:
        self._method = method
        self._began = time.perf_counter()
        # Whether the method raised an exception. An abort raises one too.
        self.raised = False
        self._span = _begin(method, context)
        method.metrics.started()
        call_context.when_over(context, self._end)

    def receive(self, request: Any) -> Any:
        """Count the request, or each message of a request stream. Return the request."""
        metrics = self._method.metrics
        if hasattr(request, "__aiter__"):
            return _counted(request, metrics)
        metrics.received()
        return request

    def count_sent(self) -> None:
        self._method.metrics.sent()

    def _end(self, context: Context) -> None:
        code = call_context.code(context, raised=self.raised)
        self._method.metrics.ended(code, time.perf_counter() - self._began)
        if self._span is not None:
            attributes: tracing.Attributes = {
                "rpc.grpc.status_code": code.value[0],
                **call_context.key(context, "cellexport.request_key"),
            }
            self._span.end(attributes, failed=code in _FAILURES)
        if code is grpc.StatusCode.CANCELLED:
            labels = {"method": self._method.path} | call_context.key(context, "request_key")
            _log.debug("call cancelled by its caller", extra=labels)


def _begin(method: _Method, context: Context) -> Span | None:
    if method.spans is None:
        return None
    metadata = context.invocation_metadata() or ()
    state = tracing.valid_state(call_context.single(metadata, TRACESTATE))
    span = method.spans.serve(method.path[1:], call_context.traceparent(metadata), state, method.attributes)
    logs.mark(trace_id=tracing.trace_id(span.traceparent))
    return span


class _CountingContext:
    """A context that counts the messages written to it, and passes everything else on."""

    def __init__(self, context: Context, call: _Call) -> None:
        self._context = context
        self._call = call

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._call.count_sent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


async def _counted(requests: AsyncIterator[Any], metrics: MethodMetrics) -> AsyncIterator[Any]:
    async for request in requests:
        metrics.received()
        yield request
