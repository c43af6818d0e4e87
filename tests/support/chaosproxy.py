"""A TCP proxy that injects the faults of networks: it delays, throttles, drops, cuts off, resets.

    with ChaosProxy(unit.grpc_port) as proxy:
        unit.start_gateway(CELLEXPORT_GRPC_TARGET=f"127.0.0.1:{proxy.port}")
        proxy.latency = 10.0

The proxy runs in its own thread. Its faults may be changed at any time; they apply to the bytes that pass after that.
"""

import asyncio
import socket
import struct
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Self

_PIECE = 64 * 1024
# The types of HTTP/2 frames that belong to a response: DATA and HEADERS.
_HEADERS_OR_DATA = (0, 1)
# The value of the socket option SO_LINGER with which closing the socket sends a reset and discards unsent bytes.
_AT_ONCE = struct.pack("ii", 1, 0)


class _Cut(Exception):
    """Raised to reset a connection."""


class ChaosProxy:
    """A proxy to a port of this machine that injects faults.

    Args:
        target: the port to which the proxy passes bytes.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut_next: int | None = None
        self._thread: threading.Thread | None = None
        self.port = 0
        # The minimum delay of bytes from the server, in seconds.
        self.latency = 0.0
        # The bytes a second that the server may send; None is no limit.
        self.bandwidth: float | None = None
        # If true, the proxy drops the bytes of both directions, and keeps the connections open.
        self.black_hole = False
        # Each connection is reset after this many bytes from the server; None is never.
        self.cut_each: int | None = None
        # The number of connections that were cut.
        self.resets = 0

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="chaosproxy")
        self._thread.start()
        self.port = started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        if self._thread is not None:
            self._thread.join(10)

    def cut_next(self, count: int | None) -> None:
        """Reset a connection after the first `count` bytes of the server's next response. None cancels the reset."""
        self._cut_next = count

    def reset_all(self) -> None:
        """Reset every open connection."""
        self._loop.call_soon_threadsafe(self._reset_all)

    async def _serve(self, started: "Future[int]") -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._start, "127.0.0.1", 0)
        started.set_result(server.sockets[0].getsockname()[1])
        await self._over.wait()
        server.close()
        self._reset_all()
        await asyncio.gather(*self._tasks)

    def _start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(server)
            try:
                await self._pass_on(reader, writer, answers, server)
            finally:
                self._writers.discard(server)
                server.close()
        except OSError:
            _reset(writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes on, in both directions, until either side ends or the connection must be cut."""
        ways = [asyncio.create_task(self._ask(reader, server)), asyncio.create_task(self._answer(answers, writer))]
        try:
            ended, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        if any(isinstance(way.exception(), _Cut) for way in ended):
            self.resets += 1
            _reset(writer)

    async def _ask(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            if not self.black_hole:
                server.write(piece)
                await server.drain()

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.cut_each
        while piece := await answers.read(_PIECE):
            await asyncio.sleep(self.latency + (len(piece) / self.bandwidth if self.bandwidth else 0))
            if self.black_hole:
                continue
            left = _left(left, piece)
            if _is_of_an_answer(piece):
                self._cut_next = _left(self._cut_next, piece)
            over = min((number for number in (left, self._cut_next) if number is not None), default=0)
            writer.write(piece[:over] if over < 0 else piece)
            if over < 0:
                self._cut_next = None
                raise _Cut
            await writer.drain()

    def _reset_all(self) -> None:
        for writer in self._writers:
            _reset(writer)


def _left(count: int | None, piece: bytes) -> int | None:
    return None if count is None else count - len(piece)


def _is_of_an_answer(piece: bytes) -> bool:
    """Return whether bytes from the server belong to a response, and are not only whole HTTP/2 control frames.

    Control frames (pings, settings, window updates) may follow a response a moment later.
    """
    at = 0
    while at + 9 <= len(piece):
        if piece[at + 3] in _HEADERS_OR_DATA:
            return True
        at += 9 + int.from_bytes(piece[at : at + 3])
    return at != len(piece)


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
