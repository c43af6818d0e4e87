"""What stands around every method: request key, cell, privilege on the way in; errors on the way out.

The order is that of the contract: request key, cell, authentication, authorisation, and only then the method. A method
that names no privilege, or is named by none, keeps the server from starting.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Never

import grpc
from google.protobuf import duration_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from cellexport import request_key
from cellexport.client import AUTHORIZATION, COOKIE, COOKIE_PEER, DOMAIN, UNIT_USER
from server.auth import Identity, Judge
from server.auth.credentials import Credentials
from server.auth.rights import Privilege
from server.cells import CellDirectory
from server.errors import RETRY_SECONDS, Refusal, Refused
from server.model import Cell

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What a method gets to know of its call besides the message."""

    request_key: str
    identity: Identity


Method = Callable[[Any, Call], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A method, the privilege that it needs, and how long it may take at the most, whatever the caller allows.

    A long one ends with its caller's token. A short one doesn't: what it has done must not be told as refused.
    """

    privilege: Privilege
    method: Method
    most_seconds: float = 10.0
    ends_with_token: bool = False


Context = grpc.aio.ServicerContext[Any, Any]


class Guard:
    """Wraps methods. Every error that leaves it is a row of `errors`, as status, ErrorInfo and RetryInfo."""

    def __init__(self, *, judge: Judge, cells: CellDirectory) -> None:
        self._judge = judge
        self._cells = cells
        self._undecodable_at = float("-inf")

    def handlers(self, service: ServiceDescriptor, rules: Mapping[str, Rule]) -> grpc.GenericRpcHandler:
        """The service for grpc to serve.

        Raises:
            ValueError: if a method of the service has no rule, or a rule has no method.
        """
        declared = {method.name for method in service.methods}
        if declared != rules.keys():
            odd = ", ".join(sorted(declared ^ rules.keys()))
            raise ValueError(f"{service.full_name}: each method needs a privilege and an implementation: {odd}")
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: grpc.unary_unary_rpc_method_handler(
                    self._wrap(method.name, rules[method.name]),
                    request_deserializer=_deserializer(GetMessageClass(method.input_type)),
                    response_serializer=GetMessageClass(method.output_type).SerializeToString,
                )
                for method in service.methods
            },
        )

    def _wrap(self, name: str, rule: Rule) -> Callable[[Any, Context], Awaitable[Message]]:
        async def guarded(request: Any, context: Context) -> Message:
            if request is None:
                self._log_undecodable(name)
                await context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
            key = ""
            try:
                metadata = context.invocation_metadata() or ()
                key = _key(metadata)
                call = self._admit(request, metadata, key, rule.privilege)
                _require_time(context)
                answer = await self._within_time(rule, request, call)
                context.set_trailing_metadata(((request_key.METADATA, key),))
                return answer
            except Refused as refused:
                error = refused
            except Exception as unexpected:
                error = _unexpected(unexpected, key)
            key = key or request_key.generate()
            _log_refusal(error, {"method": name, "cell": getattr(request, "cell", ""), "request_key": key})
            return await _abort(context, error, key)

        return guarded

    async def _within_time(self, rule: Rule, request: Any, call: Call) -> Message:
        """What the method answers, within the time that it may take."""
        remaining = self._judge.remaining_seconds(call.identity) if rule.ends_with_token else math.inf
        try:
            async with asyncio.timeout(min(rule.most_seconds, remaining)):
                return await rule.method(request, call)
        except TimeoutError as error:
            if remaining < rule.most_seconds:
                raise Refused(Refusal.TOKEN_EXPIRED, note="in the middle of the call") from error
            raise Refused(Refusal.DEADLINE_PASSED, note=f"took longer than {rule.most_seconds:g} s") from error

    def _log_undecodable(self, name: str) -> None:
        """At most once a second: such messages come in floods."""
        now = time.monotonic()
        if now - self._undecodable_at >= 1:
            self._undecodable_at = now
            _log.info("refused", extra={"reason": "undecodable message", "method": name})

    def _admit(self, request: Any, metadata: Any, key: str, privilege: Privilege) -> Call:
        cell = self._cell(request, privilege)
        identity = self._judge.judge(_credentials(metadata), cell, privilege)
        return Call(key, identity)

    def _cell(self, request: Any, privilege: Privilege) -> Cell | None:
        if not hasattr(request, "cell"):
            return None
        if privilege is Privilege.EXPORT_REPORT:
            # An export under way goes on, and ends, whatever becomes of its cell's access file meanwhile.
            self._cells.require_name(request.cell)
            return Cell(name=request.cell)
        return self._cells.find(request.cell)


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
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise Refused(Refusal.DEADLINE_PASSED)


def _values(metadata: Any, name: str) -> tuple[str, ...]:
    # What is no text is there all the same: malformed, not absent.
    return tuple(value if isinstance(value, str) else "?" for key, value in metadata if key == name)


def _key(metadata: Any) -> str:
    values = _values(metadata, request_key.METADATA)
    if values in ((), ("",)):
        return request_key.generate()
    if len(values) > 1 or not request_key.is_valid(values[0]):
        raise Refused(Refusal.REQUEST_KEY_INVALID)
    return values[0]


def _credentials(metadata: Any) -> Credentials:
    authorization = _values(metadata, AUTHORIZATION)
    return Credentials(
        authorization=",".join(authorization) if authorization else None,
        cookies=_values(metadata, COOKIE),
        peers=_values(metadata, COOKIE_PEER),
        # As an HTTP server joins header lines.
        unit_user=",".join(_values(metadata, UNIT_USER)),
    )


def _unexpected(error: Exception, key: str) -> Refused:
    error_id = secrets.token_hex(8)
    _log.error("unexpected error", exc_info=error, extra={"error_id": error_id, "request_key": key})
    return Refused(Refusal.UNEXPECTED, error_id=error_id)


def _log_refusal(error: Refused, call: dict[str, str]) -> None:
    fields = {"reason": error.refusal.reason} | call | ({"note": error.note} if error.note else {})
    row = error.refusal.value
    # What a caller did wrong is nothing that an operator has to mend; a store that is away is told once, elsewhere.
    minor = row.retry or row.status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    _log.log(logging.ERROR if error.note and not minor else logging.INFO, "refused", extra=fields)


async def _abort(context: Context, error: Refused, key: str) -> Never:
    row = error.refusal.value
    status = _status(error)
    trailing = ((request_key.METADATA, key), ("grpc-status-details-bin", status.SerializeToString()))
    await context.abort(row.status, error.text, trailing)


def _status(error: Refused) -> status_pb2.Status:
    row = error.refusal.value
    status = status_pb2.Status(code=row.status.value[0], message=error.text)
    details = {"personium_code": row.personium_code, **error.details}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.refusal.reason, domain=DOMAIN, metadata=details))
    if row.retry:
        delay = duration_pb2.Duration(seconds=RETRY_SECONDS)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status
