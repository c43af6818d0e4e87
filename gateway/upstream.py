"""The gateway's gRPC calls to the server, each with a deadline."""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub

# The deadline of a call. With it, every HTTP request is answered within 3 seconds, whatever the server does.
_DEADLINE_SECONDS = 2.5
# The pause before a retry: without it, the retry may still use the broken connection.
_PAUSE_SECONDS = 0.05
# The longest pause between attempts to connect. It is shorter than the time for which a call is retried, so that no
# request fails in a rolling restart. There are few gateways, so the attempts cost the servers little.
_FOUND_AGAIN_SECONDS = 0.25


Count = Callable[[str, grpc.StatusCode], None]


class Upstream:
    """The gateway's client of the server.

    Every method raises `grpc.RpcError` if the call fails, and `SettingError` if the TLS files are invalid before the
    first channel is open.

    Args:
        target: the server's gRPC name.
        tls: None for plaintext.
        count: called with the path and the gRPC status of each call that has ended.
    """

    def __init__(self, target: str, tls: client.Tls | None, count: Count) -> None:
        self._target = target
        self._tls = tls
        self._count = count
        self._lock = threading.Lock()
        # Never set: a wait for it is a pause.
        self._pause = threading.Event()
        self._lazy_stub: CellExportServiceStub | None = None

    def get(self, cell: str, metadata: client.Metadata) -> CellExport:
        """Return the cell's status. Retry once, within the same deadline, if the connection broke before the response.

        This retry is needed because the channel's own retries end when a part of a response has arrived.
        """
        until = time.monotonic() + _DEADLINE_SECONDS
        try:
            return self._get(cell, metadata, _DEADLINE_SECONDS)
        except grpc.RpcError as error:
            if not client.was_cut(error):
                raise
            self._pause.wait(_PAUSE_SECONDS)
            return self._get(cell, metadata, until - time.monotonic())

    def start(self, cell: str, name: str | None, metadata: client.Metadata) -> CellExport:
        """Start an export, and return the status. Never retry: a failed call may have started the export."""
        request = StartCellExportRequest(cell=cell, name=name)
        return self._stub().StartCellExport(request, timeout=_DEADLINE_SECONDS, metadata=metadata).cell_export

    def _get(self, cell: str, metadata: client.Metadata, seconds: float) -> CellExport:
        request = GetCellExportRequest(cell=cell)
        return self._stub().GetCellExport(request, timeout=seconds, metadata=metadata).cell_export

    def _stub(self) -> CellExportServiceStub:
        """Return the stub. Open its channel with the first call: some WSGI servers fork their workers, and a gRPC
        channel does not survive a fork.
        """
        with self._lock:
            if self._lazy_stub is None:
                channel = client.channel(self._target, self._tls, found_again_seconds=_FOUND_AGAIN_SECONDS)
                self._lazy_stub = CellExportServiceStub(grpc.intercept_channel(channel, _Counted(self._count)))
            return self._lazy_stub


class _Counted(grpc.UnaryUnaryClientInterceptor):
    """An interceptor that counts each call with its status."""

    def __init__(self, count: Count) -> None:
        self._count = count

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        call = continuation(client_call_details, request)
        self._count(client_call_details.method, call.code())
        return call
