"""The calls to the server, each with a deadline."""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub

# A request is answered within 3 seconds, whatever the server does.
_DEADLINE_SECONDS = 2.5
# A call at once after a connection broke may be sent on the same, which has not found out yet.
_PAUSE_SECONDS = 0.05
# For less time than a status is asked for again: of servers that are replaced one after the other, one is in use again
# before the next is missed. Gateways are few, and so are those that knock.
_FOUND_AGAIN_SECONDS = 0.25


Count = Callable[[str, grpc.StatusCode], None]


class Upstream:
    """The server, as the facade sees it. Every method raises `grpc.RpcError`, and `SettingError` as long as there is no
    channel yet and its TLS files are no good.

    Args:
        target: the server's gRPC name.
        tls: None for plaintext.
        count: called with the path and the status of each call that has ended.
    """

    def __init__(self, target: str, tls: client.Tls | None = None, count: Count | None = None) -> None:
        self._target = target
        self._tls = tls
        self._count = count
        self._lock = threading.Lock()
        # Never set.
        self._pause = threading.Event()
        self._lazy_stub: CellExportServiceStub | None = None

    def get(self, cell: str, metadata: client.Metadata) -> CellExport:
        """Asked for once more, within the same time, if the connection broke before the server's word was here.

        The channel does that only for as long as nothing of an answer has come.
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
        request = StartCellExportRequest(cell=cell, name=name)
        return self._stub().StartCellExport(request, timeout=_DEADLINE_SECONDS, metadata=metadata).cell_export

    def _get(self, cell: str, metadata: client.Metadata, seconds: float) -> CellExport:
        request = GetCellExportRequest(cell=cell)
        return self._stub().GetCellExport(request, timeout=seconds, metadata=metadata).cell_export

    def _stub(self) -> CellExportServiceStub:
        """Made with the first call: a channel does not survive the fork of a pre-forking server."""
        with self._lock:
            if self._lazy_stub is None:
                channel = client.channel(self._target, self._tls, found_again_seconds=_FOUND_AGAIN_SECONDS)
                if self._count is not None:
                    channel = grpc.intercept_channel(channel, _Counted(self._count))
                self._lazy_stub = CellExportServiceStub(channel)
            return self._lazy_stub


class _Counted(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, count: Count) -> None:
        self._count = count

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        call = continuation(client_call_details, request)
        self._count(client_call_details.method, call.code())
        return call
