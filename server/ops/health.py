"""Health, as `grpc.health.v1` has it: whether this server should be given calls. Whoever asks needs no token.

It is SERVING while the store answers. A store *in doubt* answers too: statuses are refused until the doubt is over, by
every server alike, and the exporters, who end it, must reach one. The same is said of every service, and nothing of any
cell.
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
# No service of anybody's has a longer name. A watch of one that there isn't is held open, and its name with it.
_LONGEST_NAME = 256

_log = logging.getLogger(__name__)


class Health(HealthServicer):
    """Not the library's own: there a watch that reads nothing keeps all others, and Check, from hearing of a change.

    Args:
        pulse: whether the store answers.
        services: the full names of the services there are.
    """

    def __init__(self, pulse: StorePulse, services: Iterable[str]) -> None:
        self._pulse = pulse
        self._known = {"", *services}
        self._streams = PublicStreams(most=_MOST_WATCHES)
        self._serving = False
        self._draining = False
        # Set, and replaced, with each change.
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follow the store until cancelled."""
        while True:
            self._tell(serving=self._pulse.beats and not self._draining)
            await asyncio.sleep(_TICK_SECONDS)

    def drain(self) -> None:
        """NOT_SERVING from now on, for good."""
        self._draining = True
        self._set(serving=False)

    def close(self) -> None:
        """End every watch, and let none begin any more."""
        self._streams.close()

    # The methods are called as the contract calls them.

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:  # noqa: N802
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "The server has no such service.")
        return HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        async with self._streams.room(context):
            told = None
            while len(request.service) <= _LONGEST_NAME or told is None:
                changed, status = self._changed, self._status(request.service)
                if status != told:
                    await context.write(HealthCheckResponse(status=status))
                    told = status
                else:
                    await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._known:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING

    def _tell(self, *, serving: bool) -> None:
        if serving != self._serving:
            _log.info("health", extra={"status": "SERVING" if serving else "NOT_SERVING"})
            self._set(serving=serving)

    def _set(self, *, serving: bool) -> None:
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()
