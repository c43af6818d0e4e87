"""The calls to the server, each with a deadline."""

import threading

from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub

# A request is answered within 3 seconds, whatever the server does.
_DEADLINE_SECONDS = 2.5


class Upstream:
    """The server, as the facade sees it. Every method raises `grpc.RpcError`.

    Args:
        target: the server's gRPC name.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._lazy_stub: CellExportServiceStub | None = None

    def get(self, cell: str, metadata: client.Metadata) -> CellExport:
        request = GetCellExportRequest(cell=cell)
        return self._stub().GetCellExport(request, timeout=_DEADLINE_SECONDS, metadata=metadata).cell_export

    def start(self, cell: str, name: str | None, metadata: client.Metadata) -> CellExport:
        request = StartCellExportRequest(cell=cell, name=name)
        return self._stub().StartCellExport(request, timeout=_DEADLINE_SECONDS, metadata=metadata).cell_export

    def _stub(self) -> CellExportServiceStub:
        """Made with the first call: a channel does not survive the fork of a pre-forking server."""
        with self._lock:
            if self._lazy_stub is None:
                self._lazy_stub = CellExportServiceStub(client.channel(self._target))
            return self._lazy_stub
