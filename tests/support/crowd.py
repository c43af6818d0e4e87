"""A crowd of watches, in a process of its own: `python crowd.py {target} {watches} {connections} {cells}`.

Each goes on after its revision whenever it is cut off. A line of JSON, some times a second, says how they are; the
crowd leaves when its standard input ends.
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
# How many are opened at a time: more at once, and grpc cancels some of them.
_OPENED_AT_A_TIME = 250
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 2000))


@dataclass
class _Crowd:
    opening: asyncio.Semaphore
    revisions: dict[int, int] = field(default_factory=dict)
    # Those that have heard something since they were opened last.
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
                    self._heard(number, await call.read())
                failures = 0
                while True:
                    self._heard(number, await call.read())
            except grpc.aio.AioRpcError:
                self.open.discard(number)
                self.failures += 1
                failures += 1
                await asyncio.sleep(random.uniform(0.5, 1) * min(5, 0.2 * 2**failures))

    def _heard(self, number: int, message: object) -> None:
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
    # Kept, or they would be thrown away while they work.
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
