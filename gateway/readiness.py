"""The readiness of the gateway, for `/readyz`: whether a server is SERVING."""

import json
import logging
import threading
import time
from dataclasses import dataclass

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from cellexport import client
from cellexport.environment import SettingError

# The deadline of one check.
_DEADLINE_SECONDS = 0.9
# A result younger than this is returned without a new check.
_FRESH_SECONDS = 1.0
# A result older than this is never returned. In between, one request checks, and the others get the cached result.
_STALE_SECONDS = 3.0
_ROUND_ROBIN: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
# Two channels. The first watches the health of every server, and sends the check to a server that is SERVING. A server
# limits the number of health watches, and other clients may use them all: then the first channel finds no server. The
# second channel watches no health, and sends the check to one server after another.
_SERVICE_CONFIGS = (json.dumps(_ROUND_ROBIN | {"healthCheckConfig": {"serviceName": ""}}), json.dumps(_ROUND_ROBIN))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Result:
    checked_at: float
    ready: bool


class Readiness:
    """The cached result of a health check. The server is checked at most once a second.

    Args:
        target: the server's gRPC name.
        tls: None for plaintext.
    """

    def __init__(self, target: str, tls: client.Tls | None = None) -> None:
        self._target = target
        self._tls = tls
        self._checking = threading.Lock()
        self._result = _Result(float("-inf"), ready=False)
        # Opened with the first check: some WSGI servers fork their workers, and a gRPC channel does not survive a fork.
        self._lazy_channels: tuple[grpc.Channel, ...] = ()

    def is_ready(self) -> bool:
        """Return whether a server answers within 0.9 seconds that it is SERVING. The result may be 3 seconds old."""
        age = time.monotonic() - self._result.checked_at
        if age < _FRESH_SECONDS or not self._checking.acquire(blocking=age > _STALE_SECONDS):
            return self._result.ready
        try:
            if time.monotonic() - self._result.checked_at >= _FRESH_SECONDS:
                ready = self._check()
                if ready != self._result.ready:
                    _log.info("ready" if ready else "not ready: no server is SERVING")
                self._result = _Result(time.monotonic(), ready)
            return self._result.ready
        finally:
            self._checking.release()

    def _check(self) -> bool:
        try:
            self._lazy_channels = self._lazy_channels or tuple(
                client.channel(self._target, self._tls, service_config=config) for config in _SERVICE_CONFIGS
            )
        except SettingError:
            # The TLS files are invalid, perhaps because an operator is replacing them. Try again with the next check.
            return False
        until = time.monotonic() + _DEADLINE_SECONDS
        return any(_is_serving(channel, until) for channel in self._lazy_channels)


def _is_serving(channel: grpc.Channel, until: float) -> bool:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    try:
        answer: HealthCheckResponse = check(HealthCheckRequest(), timeout=until - time.monotonic())
    except grpc.RpcError:
        return False
    return answer.status == HealthCheckResponse.SERVING
