"""A crowd of watches, in its own process: `python crowd.py {target} {watches} {connections} {cells}`.

Each watch resumes after its last revision when it is cut off. The process reports the state of the watches several
times a second, as a line of JSON, and exits when its standard input ends.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field

import grpc

from cellexport import client
from cellexport.v1.cell_export_pb2 import WatchCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub

TOKEN = "master-token-for-tests"
# The most watches that are being opened at the same time. gRPC cancels some if more are.
_OPENED_AT_A_TIME = 250
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 2000))


@dataclass
class _Crowd:
    opening: asyncio.Semaphore
    revisions: dict[int, int] = field(default_factory=dict)
    # The numbers of the watches that have received a message since they were last opened.
    open: set[int] = field(default_factory=set)
    messages: int = 0
    failures: int = 0
    last_at: float = 0.0

    async def follow(self, number: int, channel: grpc.aio.Channel, cell: str) -> None:
        stub, failures = CellExportServiceStub(channel), 0
        while True:
            try:
                async with self.opening:
                    request = WatchCellExportRequest(cell=cell, after_revision=self.revisions.get(number, 0))
                    call = stub.WatchCellExport(request, metadata=client.bearer(TOKEN))
                    self._receive(number, await call.read())
                failures = 0
                while True:
                    self._receive(number, await call.read())
            except grpc.aio.AioRpcError:
                self.open.discard(number)
                self.failures += 1
                failures += 1
                await asyncio.sleep(random.uniform(0.5, 1) * min(5, 0.2 * 2**failures))

    def _receive(self, number: int, message: object) -> None:
        self.revisions[number] = message.revision  # type: ignore[attr-defined]
        self.open.add(number)
        self.messages += 1
        self.last_at = time.monotonic()

    def report(self) -> dict[str, object]:
        newest = max(self.revisions.values(), default=0)
        return {
            "open": len(self.open),
            "messages": self.messages,
            "failures": self.failures,
            "at_newest": sum(revision == newest for revision in self.revisions.values()),
            "newest": newest,
            "last_at": self.last_at,
        }


async def _main(target: str, watches: int, connections: int, cells: int) -> None:
    crowd = _Crowd(asyncio.Semaphore(_OPENED_AT_A_TIME))
    channels = [grpc.aio.insecure_channel(target, options=_OPTIONS) for _ in range(connections)]
    # Keep the tasks in a list, because the event loop has only weak references to them.
    tasks = [
        asyncio.create_task(crowd.follow(number, channels[number % connections], f"cell{number % cells}"))
        for number in range(watches)
    ]
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not over.done():
        print(json.dumps(crowd.report()), flush=True)
        await asyncio.wait({over}, timeout=0.2)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], *map(int, sys.argv[2:5])))
