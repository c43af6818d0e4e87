"""Watch a cell's export for as long as it takes, through restarts of the server and breaks of the network.

with client.channel("127.0.0.1:50051") as channel:
    for message in watching.watch(channel, "demo", lambda: client.bearer(token), until_ready=True):
        print(message.cell_export.exportation.progress_percent)
"""

import random
import threading
from collections.abc import Callable, Iterator

import grpc

from cellexport.client import Metadata, error_info, retry_seconds, was_cut
from cellexport.v1.cell_export_pb2 import WatchCellExportRequest, WatchCellExportResponse
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub

_LEAST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
# With these the server lets go of a watch that is worth opening again, as is one that was cut.
_PASSING = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED})


def watch(
    channel: grpc.Channel,
    cell: str,
    metadata: Callable[[], Metadata],
    *,
    after_revision: int = 0,
    until_ready: bool = False,
    over: threading.Event | None = None,
) -> Iterator[WatchCellExportResponse]:
    """The messages of a watch that is opened again, where the last one left off, whenever it ends before its time.

    It waits longer from time to time, and not as long as others do who were cut off at the same moment.

    Args:
        metadata: what to present, asked for each time: tokens may be exchanged meanwhile.
        after_revision: the revision to go on after; 0 begins with the current status.
        until_ready: whether to end after a status whose state is STATE_READY.
        over: ends the watch when it is set, at the latest with the next message.

    Raises:
        grpc.RpcError: if the watch ends in a way that opening it again would not mend.
    """
    over = over or threading.Event()
    stub, failures = CellExportServiceStub(channel), 0
    while not over.is_set():
        request = WatchCellExportRequest(cell=cell, after_revision=after_revision, until_ready=until_ready)
        call, heard = stub.WatchCellExport(request, metadata=metadata()), False
        try:
            for message in call:
                heard, failures, after_revision = True, 0, message.revision
                yield message
                if over.is_set():
                    return
            return
        except grpc.RpcError as error:
            # A token that was good until now may be exchanged; one that was never good, or isn't exchanged, ends it.
            # A proxy's word for a connection that broke behind it counts only once something was heard.
            if error.code() not in _PASSING and not (heard and (_is_expiry(error) or was_cut(error))):
                raise
            failures += 1
            over.wait(_pause(failures, error))
        finally:
            call.cancel()


def _is_expiry(error: grpc.RpcError) -> bool:
    info = error_info(error)
    return info is not None and info.reason == "TOKEN_EXPIRED"


def _pause(failures: int, error: grpc.RpcError) -> float:
    """How long to wait before the next try, in seconds."""
    longest = min(_LONGEST_PAUSE_SECONDS, _LEAST_PAUSE_SECONDS * 2 ** min(failures, 10))
    return max(retry_seconds(error), random.uniform(longest / 2, longest))  # noqa: S311 - guards nothing
