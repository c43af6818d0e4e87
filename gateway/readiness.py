"""Whether there is a server to serve with: what an orchestrator asks the gateway by `/readyz`."""

import json
import logging
import threading
import time
from dataclasses import dataclass

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from cellexport import client
from cellexport.environment import SettingError

_DEADLINE_SECONDS = 0.9
_FRESH_SECONDS = 1.0
# What is known longer than that is waited to be known anew, instead of told while somebody else asks.
_STALE_SECONDS = 3.0
_TURNS: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
# Of several servers, one that is SERVING is asked. To know which that is takes a watch of health at each of them; there
# are only so many watches, and anybody may have them. So where that channel knows of none, servers are asked in turn.
_SERVICE_CONFIGS = (json.dumps(_TURNS | {"healthCheckConfig": {"serviceName": ""}}), json.dumps(_TURNS))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    when: float
    ready: bool


class Readiness:
    """However many want to know, the server is asked once a second at the most, and by one of them.

    Args:
        target: the server's gRPC name.
        tls: None for plaintext.
    """

    def __init__(self, target: str, tls: client.Tls | None = None) -> None:
        self._target = target
        self._tls = tls
        self._asking = threading.Lock()
        self._known = _Known(float("-inf"), ready=False)
        # Made with the first question: a channel does not survive the fork of a pre-forking server.
        self._lazy_channels: tuple[grpc.Channel, ...] = ()

    def known(self) -> bool:
        """Whether a server says in time that it is SERVING."""
        age = time.monotonic() - self._known.when
        if age < _FRESH_SECONDS or not self._asking.acquire(blocking=age > _STALE_SECONDS):
            return self._known.ready
        try:
            if time.monotonic() - self._known.when >= _FRESH_SECONDS:
                ready = self._ask()
                if ready != self._known.ready:
                    _log.info("ready" if ready else "not ready: no server is SERVING")
                self._known = _Known(time.monotonic(), ready)
            return self._known.ready
        finally:
            self._asking.release()

    def _ask(self) -> bool:
        try:
            self._lazy_channels = self._lazy_channels or tuple(
                client.channel(self._target, self._tls, service_config=config) for config in _SERVICE_CONFIGS
            )
        except SettingError:
            # Its TLS files are being exchanged, or no good.
            return False
        until = time.monotonic() + _DEADLINE_SECONDS
        return any(_says_serving(channel, until) for channel in self._lazy_channels)


def _says_serving(channel: grpc.Channel, until: float) -> bool:
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
