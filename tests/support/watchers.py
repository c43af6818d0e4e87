"""Watches that a test reads."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import grpc

from cellexport import client, watching
from cellexport.v1.cell_export_pb2 import WatchCellExportRequest, WatchCellExportResponse
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import TOKEN, Unit


class Watch:
    """A call of WatchCellExport. The test reads its messages one at a time."""

    def __init__(self, channel: grpc.Channel, cell: str = "demo", *, token: str = TOKEN, **request: int) -> None:
        message = WatchCellExportRequest(cell=cell, **request)  # type: ignore[arg-type]
        self.call = CellExportServiceStub(channel).WatchCellExport(message, metadata=client.bearer(token), timeout=60)

    def next(self) -> WatchCellExportResponse:
        return next(self.call)

    def next_status(self) -> WatchCellExportResponse:
        """Return the next message with a status."""
        while True:
            message = self.next()
            if message.HasField("cell_export"):
                return message

    def end(self) -> grpc.RpcError | None:
        """Read the watch to its end, and return the error with which it ended; None if it ended with OK."""
        try:
            for _ in self.call:
                continue
        except grpc.RpcError as error:
            return error
        return None


@dataclass
class Follower:
    """The messages of a watch that resumes after each error, and the error that ended it for good."""

    messages: list[WatchCellExportResponse] = field(default_factory=list)
    # The same messages as a queue, for tests that wait for the next message.
    arrived: "queue.SimpleQueue[WatchCellExportResponse]" = field(default_factory=queue.SimpleQueue)
    failed: list[grpc.RpcError] = field(default_factory=list)

    def statuses(self) -> list[WatchCellExportResponse]:
        return [message for message in self.messages if message.HasField("cell_export")]

    def judge(self) -> None:
        """Assert that no status was sent twice or out of order, and that the watch has not failed for good."""
        assert not self.failed
        revisions = [message.revision for message in self.statuses()]
        assert all(earlier < later for earlier, later in pairwise(revisions)), revisions


@contextmanager
def following(unit: Unit, cell: str = "demo", *, target: str | None = None) -> Iterator[Follower]:
    follower, over = Follower(), threading.Event()

    def follow(channel: grpc.Channel) -> None:
        try:
            for message in watching.watch(channel, cell, lambda: client.bearer(TOKEN), over=over):
                follower.messages.append(message)
                follower.arrived.put(message)
        except (grpc.RpcError, ValueError) as error:
            # At the context's end the channel is closed, which ends the watch with an error. That is not a failure.
            if not over.is_set():
                follower.failed.append(error if isinstance(error, grpc.RpcError) else grpc.RpcError(str(error)))

    with client.channel(target or f"127.0.0.1:{unit.grpc_port}") as channel:
        thread = threading.Thread(target=follow, args=(channel,), daemon=True)
        thread.start()
        try:
            yield follower
        finally:
            over.set()
    thread.join(10)
    assert not thread.is_alive()
