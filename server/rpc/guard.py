"""The guard around every method: it admits the call, limits its time, and turns every error into a refusal.

The order is the contract's: request key, cell, authentication, authorisation, then the method. The server doesn't
start if a method has no privilege.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from cellexport import request_key
from server.auth import Identity
from server.auth.credentials import Credentials
from server.exports.clock import Clock
from server.refusals import Refusal, Refused
from server.rpc import call_context
from server.rpc.abort import abort, log_refusal, to_refused
from server.rpc.admission import Admission, Call, presented_in
from server.rpc.call_context import Context
from server.rpc.in_flight import CallsInFlight
from server.rpc.methods import BatchMethod, GuardedMethod, StreamMethod, UnaryMethod

# How many cells of one `BatchGetCellExports` call are read from the store at a time.
_CELLS_AT_A_TIME = 25
# How many `BatchGetCellExports` calls are answered at a time: a thousand at once would starve all other calls.
_BATCHES_AT_A_TIME = 2

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A call as it arrived: not yet admitted."""

    method: str
    request: Any
    credentials: Credentials
    key: str
    context: Context


class Guard:
    """The wrapper of all gRPC methods. Every error of a method reaches the caller as a `Refusal`, sent by `abort`.

    Args:
        admission: decides whether a call may run.
        calls: counts the calls being served.
        clock: milliseconds since 1970, to know when a caller's token expires.
    """

    def __init__(self, admission: Admission, calls: CallsInFlight, clock: Clock) -> None:
        self._admission = admission
        self._calls = calls
        self._clock = clock
        self._undecodable_logged_at = float("-inf")
        self._batches = asyncio.Semaphore(_BATCHES_AT_A_TIME)

    def handlers(self, service: ServiceDescriptor, methods: Mapping[str, GuardedMethod]) -> grpc.GenericRpcHandler:
        """Return the service with its guarded methods, for grpc to serve.

        Raises:
            ValueError: if a method of the service is missing in `methods`, or `methods` has a method that is not in the
                service.
        """
        declared = {method.name for method in service.methods}
        if declared != methods.keys():
            odd = ", ".join(sorted(declared ^ methods.keys()))
            raise ValueError(f"{service.full_name}: each method needs a privilege and an implementation: {odd}")
        return grpc.method_handlers_generic_handler(
            service.full_name, {method.name: self._handler(method, methods[method.name]) for method in service.methods}
        )

    def _handler(self, descriptor: MethodDescriptor, method: GuardedMethod) -> "grpc.RpcMethodHandler[Any, Any]":
        streams = isinstance(method, StreamMethod)
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return make(
            self._guarded(descriptor.name, method),
            request_deserializer=_deserializer(GetMessageClass(descriptor.input_type)),
            response_serializer=GetMessageClass(descriptor.output_type).SerializeToString,
        )

    def _guarded(self, name: str, method: GuardedMethod) -> Callable[[Any, Context], Awaitable[Message | None]]:
        async def guarded(request: Any, context: Context) -> Message | None:
            self._calls.add(context)
            if request is None:
                self._log_undecodable(name)
                await context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
            key = ""
            try:
                key, credentials = presented_in(context.invocation_metadata() or ())
                context.set_trailing_metadata(((request_key.METADATA, key),))
                return await self._serve(method, _Incoming(name, request, credentials, key, context))
            except Exception as exception:
                error = exception
            key = key or request_key.generate()
            return await abort(context, _refuse(error, name, getattr(request, "cell", ""), key), key)

        return guarded

    async def _serve(self, method: GuardedMethod, incoming: _Incoming) -> Message | None:
        match method:
            case UnaryMethod():
                return await self._unary(method, incoming)
            case BatchMethod():
                return await self._batch(method, incoming)
            case StreamMethod():
                await self._stream(method, incoming)
                return None

    async def _unary(self, method: UnaryMethod, incoming: _Incoming) -> Message:
        request = incoming.request
        identity = self._admission.admit(getattr(request, "cell", None), incoming.credentials, method.privilege)
        _require_time(incoming.context)
        answer = method.method(request, Call(incoming.key, identity))
        token_seconds = self._token_seconds(identity) if method.ends_with_token else None
        return await _within(answer, seconds=method.most_seconds, token_seconds=token_seconds)

    async def _batch(self, method: BatchMethod, incoming: _Incoming) -> Message:
        cells = incoming.request.cells
        if len(cells) > method.most_cells:
            raise Refused(Refusal.BATCH_TOO_LARGE)
        _require_time(incoming.context)

        async def entry(cell: str) -> tuple[str, Message | Refused]:
            try:
                identity = self._admission.admit(cell, incoming.credentials, method.privilege)
                return cell, await method.method(cell, Call(incoming.key, identity))
            except Exception as error:
                return cell, _refuse(error, incoming.method, cell, incoming.key)

        async def answer() -> Message:
            entries: list[tuple[str, Message | Refused]] = []
            async with self._batches:
                for start in range(0, len(cells), _CELLS_AT_A_TIME):
                    entries += await asyncio.gather(*map(entry, cells[start : start + _CELLS_AT_A_TIME]))
                return method.answer(entries)

        return await _within(answer(), seconds=method.most_seconds)

    async def _stream(self, method: StreamMethod, incoming: _Incoming) -> None:
        with method.limit.room():
            identity = self._admission.admit(incoming.request.cell, incoming.credentials, method.privilege)
            with method.limit.room_for(identity):
                await _within(self._send(method, incoming, identity), token_seconds=self._token_seconds(identity))

    async def _send(self, method: StreamMethod, incoming: _Incoming, identity: Identity) -> None:
        async with aclosing(method.method(incoming.request, Call(incoming.key, identity))) as answers:
            async for answer in answers:
                # The caller's rights, or the cell itself, may have been removed since the last message.
                self._admission.admit(incoming.request.cell, incoming.credentials, method.privilege)
                await incoming.context.write(answer)

    def _token_seconds(self, identity: Identity) -> float | None:
        return identity.remaining_seconds(self._clock())

    def _log_undecodable(self, name: str) -> None:
        """Log a request that can't be decoded, at most once a second: such requests come in floods."""
        now = time.monotonic()
        if now - self._undecodable_logged_at >= 1:
            self._undecodable_logged_at = now
            _log.info("call refused", extra={"reason": "undecodable message", "method": name})


def _refuse(error: Exception, method: str, cell: str, key: str) -> Refused:
    refused = to_refused(error, method=method, cell=cell, key=key)
    log_refusal(refused, method=method, cell=cell, key=key)
    return refused


def _deserializer(message: type[Message]) -> Callable[[bytes], Message | None]:
    """Return a parser of requests. It returns None for malformed bytes: for an exception grpc logs a stack trace."""

    def deserialize(data: bytes) -> Message | None:
        try:
            return message.FromString(data)
        except DecodeError:
            return None

    return deserialize


def _require_time(context: Context) -> None:
    """Raise `Refused` with DEADLINE_PASSED if the caller's deadline has passed, so that it no longer waits."""
    if call_context.is_late(context):
        raise Refused(Refusal.DEADLINE_PASSED)


async def _within(answer: Awaitable[_T], *, seconds: float | None = None, token_seconds: float | None = None) -> _T:
    """Return the answer, unless it takes longer than `seconds` or than the caller's token stays valid.

    None means no limit.
    """
    limits = [limit for limit in (seconds, token_seconds) if limit is not None]
    if not limits:
        return await answer
    try:
        async with asyncio.timeout(min(limits)):
            return await answer
    except TimeoutError as error:
        if token_seconds is not None and token_seconds == min(limits):
            raise Refused(Refusal.TOKEN_EXPIRED, note="the token expired during the call") from error
        raise Refused(Refusal.DEADLINE_PASSED, note=f"took longer than {seconds:g} s") from error
