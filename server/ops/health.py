"""The health service `grpc.health.v1`: whether this server should receive calls. Callers need no token.

The server is SERVING while the store answers, also while the store is in doubt (it is new or lost writes, so its
records may be outdated). Every server refuses statuses then, but exporters must reach a server to report. All services
have the same health. It reveals nothing about cells.
"""

import asyncio
import logging
from collections.abc import Iterable

import grpc
from google.protobuf.descriptor_pool import Default
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from server.exports.store_pulse import StorePulse
from server.ops.public_streams import PublicStreams
from server.rpc.call_context import Context

SERVICE = Default().FindServiceByName("grpc.health.v1.Health")

_TICK_SECONDS = 0.25
_MOST_WATCHES = 1000
# The longest service name that is watched, in characters: a watch of an unknown service stays open and keeps the name
# in memory.
_LONGEST_NAME = 256

_log = logging.getLogger(__name__)


class Health(HealthServicer):
    """The health service. In grpc's own, a watcher that reads nothing blocks Check and all other watchers.

    Args:
        pulse: reports whether the store answers.
        services: the full names of the known services.
    """

    def __init__(self, pulse: StorePulse, services: Iterable[str]) -> None:
        self._pulse = pulse
        self._known = {"", *services}
        self._streams = PublicStreams(most=_MOST_WATCHES)
        self._serving = False
        self._draining = False
        # Set when the status changes, and then replaced by a new event.
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Set the health whenever the store starts or stops answering, until cancelled."""
        while True:
            self._update(serving=self._pulse.beats and not self._draining)
            await asyncio.sleep(_TICK_SECONDS)

    def drain(self) -> None:
        """Report NOT_SERVING from now on."""
        self._draining = True
        self._set(serving=False)

    def close(self) -> None:
        """End every watch and refuse new ones."""
        self._streams.close()

    # The contract `grpc.health.v1` prescribes the names of these methods.

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:  # noqa: N802
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "The server has no such service.")
        return HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        async with self._streams.room(context):
            sent = None
            while len(request.service) <= _LONGEST_NAME or sent is None:
                changed, status = self._changed, self._status(request.service)
                if status != sent:
                    await context.write(HealthCheckResponse(status=status))
                    sent = status
                else:
                    await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._known:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING

    def _update(self, *, serving: bool) -> None:
        if serving != self._serving:
            _log.info("health changed", extra={"status": "SERVING" if serving else "NOT_SERVING"})
            self._set(serving=serving)

    def _set(self, *, serving: bool) -> None:
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()
