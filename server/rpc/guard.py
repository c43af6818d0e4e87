"""What stands around every method: request key, cell, privilege on the way in; errors on the way out.

The order is that of the contract: request key, cell, authentication, authorisation, and only then the method. A method
that names no privilege, or is named by none, keeps the server from starting.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from cellexport import request_key
from server.auth.credentials import Credentials
from server.refusals import Refusal, Refused
from server.rpc import abort, call_context
from server.rpc.admission import Admission, Call, presented_in
from server.rpc.call_context import Context
from server.rpc.in_flight import CallsInFlight
from server.rpc.methods import BatchMethod, GuardedMethod, StreamMethod, UnaryMethod

# How many cells of one call are looked at at a time.
_AT_A_TIME = 25
# How many such calls are answered at a time: a thousand at once would leave no other call its turn.
_BATCHES_AT_A_TIME = 2

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Guard:
    """Wraps methods. Every error that leaves it is a row of `errors`, in the form that `failures` gives it."""

    def __init__(self, admission: Admission, calls: CallsInFlight) -> None:
        self._admission = admission
        self._calls = calls
        self._undecodable_at = float("-inf")
        self._batches = asyncio.Semaphore(_BATCHES_AT_A_TIME)

    def handlers(self, service: ServiceDescriptor, methods: Mapping[str, GuardedMethod]) -> grpc.GenericRpcHandler:
        """The service for grpc to serve.

        Raises:
            ValueError: if a method of the service has no spec, or a spec has no method.
        """
        declared = {method.name for method in service.methods}
        if declared != methods.keys():
            odd = ", ".join(sorted(declared ^ methods.keys()))
            raise ValueError(f"{service.full_name}: each method needs a privilege and an implementation: {odd}")
        return grpc.method_handlers_generic_handler(
            service.full_name, {method.name: self._handler(method, methods[method.name]) for method in service.methods}
        )

    def _handler(self, method: MethodDescriptor, spec: GuardedMethod) -> "grpc.RpcMethodHandler[Any, Any]":
        streams = isinstance(spec, StreamMethod)
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return make(
            self._guarded(method.name, spec),
            request_deserializer=_deserializer(GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )

    def _guarded(self, name: str, spec: GuardedMethod) -> Callable[[Any, Context], Awaitable[Message | None]]:
        async def guarded(request: Any, context: Context) -> Message | None:
            self._calls.add(context)
            if request is None:
                self._log_undecodable(name)
                await context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
            key = ""
            try:
                key, credentials = presented_in(context.invocation_metadata() or ())
                context.set_trailing_metadata(((request_key.METADATA, key),))
                match spec:
                    case UnaryMethod():
                        return await self._once(spec, request, credentials, key, context)
                    case BatchMethod():
                        return await self._each(spec, name, request, credentials, key, context)
                    case StreamMethod():
                        await self._stream(spec, request, credentials, key, context)
                        return None
            except Exception as exception:
                error = exception
            key = key or request_key.generate()
            refused = abort.logged(error, method=name, cell=getattr(request, "cell", ""), key=key)
            return await abort.abort(context, refused, key)

        return guarded

    async def _once(
        self, spec: UnaryMethod, request: Any, credentials: Credentials, key: str, context: Context
    ) -> Message:
        identity = self._admission.admit(getattr(request, "cell", None), credentials, spec.privilege)
        _require_time(context)
        remaining = self._admission.remaining_seconds(identity) if spec.ends_with_token else math.inf
        return await _within(spec.most_seconds, remaining, spec.method(request, Call(key, identity)))

    async def _each(
        self, spec: BatchMethod, name: str, request: Any, credentials: Credentials, key: str, context: Context
    ) -> Message:
        cells = request.cells
        if len(cells) > spec.most_cells:
            raise Refused(Refusal.BATCH_TOO_LARGE)
        _require_time(context)

        async def one(cell: str) -> tuple[str, Message | Refused]:
            try:
                identity = self._admission.admit(cell, credentials, spec.privilege)
                return cell, await spec.method(cell, Call(key, identity))
            except Exception as exception:
                return cell, abort.logged(exception, method=name, cell=cell, key=key)

        async def all_of_them() -> Message:
            entries: list[tuple[str, Message | Refused]] = []
            async with self._batches:
                for start in range(0, len(cells), _AT_A_TIME):
                    entries += await asyncio.gather(*map(one, cells[start : start + _AT_A_TIME]))
                return spec.answer(entries)

        return await _within(spec.most_seconds, math.inf, all_of_them())

    async def _stream(
        self, spec: StreamMethod, request: Any, credentials: Credentials, key: str, context: Context
    ) -> None:
        with spec.limit.room():
            identity = self._admission.admit(request.cell, credentials, spec.privilege)
            with spec.limit.room_for(identity):
                remaining = self._admission.remaining_seconds(identity)
                sending = self._send(spec, request, credentials, Call(key, identity), context)
                await _within(math.inf, remaining, sending)

    async def _send(
        self, spec: StreamMethod, request: Any, credentials: Credentials, call: Call, context: Context
    ) -> None:
        async with aclosing(spec.method(request, call)) as answers:
            async for answer in answers:
                # Rights may have been taken away since the last, and the cell with them.
                self._admission.admit(request.cell, credentials, spec.privilege)
                await context.write(answer)

    def _log_undecodable(self, name: str) -> None:
        """At most once a second: such messages come in floods."""
        now = time.monotonic()
        if now - self._undecodable_at >= 1:
            self._undecodable_at = now
            _log.info("refused", extra={"reason": "undecodable message", "method": name})


def _deserializer(message: type[Message]) -> Callable[[bytes], Message | None]:
    """Bytes that are no such message become None: what grpc says of them by itself shows our insides."""

    def deserialize(data: bytes) -> Message | None:
        try:
            return message.FromString(data)
        except DecodeError:
            return None

    return deserialize


def _require_time(context: Context) -> None:
    """What nobody waits for any more must not be done."""
    if call_context.is_late(context):
        raise Refused(Refusal.DEADLINE_PASSED)


async def _within(most_seconds: float, token_seconds: float, answer: Awaitable[_T]) -> _T:
    """What comes of it, within the time that it may take, and as long as the caller's token is good."""
    seconds = min(most_seconds, token_seconds)
    if seconds == math.inf:
        return await answer
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError as error:
        if token_seconds < most_seconds:
            raise Refused(Refusal.TOKEN_EXPIRED, note="in the middle of the call") from error
        raise Refused(Refusal.DEADLINE_PASSED, note=f"took longer than {most_seconds:g} s") from error
