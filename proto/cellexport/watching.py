"""A watch of a cell's export that survives restarts of the server and network failures.

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
# A watch that ends with one of these gRPC statuses is opened again, and so is a watch that a broken connection or a
# proxy cut off (`client.was_cut`).
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
    """Yield the messages of a watch, and open it again after the last revision whenever it ends early.

    Between attempts it waits from 0.1 to 5 seconds: longer after each failure, with jitter, and at least as long as
    the server asks.

    Args:
        metadata: returns the credentials. It is called for each attempt, because a token may have been replaced.
        after_revision: the revision to continue from; 0 begins with the current status.
        until_ready: whether to end when no export is in progress.
        over: ends the watch when it is set, at the latest with the next message.

    Raises:
        grpc.RpcError: if the watch ends with an error that a retry would not resolve.
    """
    over = over or threading.Event()
    stub, failures = CellExportServiceStub(channel), 0
    while not over.is_set():
        request = WatchCellExportRequest(cell=cell, after_revision=after_revision, until_ready=until_ready)
        call, answered = stub.WatchCellExport(request, metadata=metadata()), False
        try:
            for message in call:
                answered, failures, after_revision = True, 0, message.revision
                yield message
                if over.is_set():
                    return
            return
        except grpc.RpcError as error:
            # After a first message, retry if the token has expired: `metadata` may return a new one. If that token has
            # expired too, the watch ends. Only after a first message, INTERNAL means a broken connection.
            if error.code() not in _PASSING and not (answered and (_is_expiry(error) or was_cut(error))):
                raise
            failures += 1
            over.wait(_pause(failures, error))
        finally:
            call.cancel()


def _is_expiry(error: grpc.RpcError) -> bool:
    info = error_info(error)
    return info is not None and info.reason == "TOKEN_EXPIRED"


def _pause(failures: int, error: grpc.RpcError) -> float:
    """Return the seconds to wait before the next attempt."""
    longest = min(_LONGEST_PAUSE_SECONDS, _LEAST_PAUSE_SECONDS * 2 ** min(failures, 10))
    return max(retry_seconds(error), random.uniform(longest / 2, longest))  # noqa: S311 - not a secret
