"""`make bench`: the CPU time that a status costs, beside the CPU time of the smallest possible programs.

The kernel accounts for CPU time by process, so other load on the machine matters little. The figures still depend on
the machine: quote only ratios within one run.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from cellexport import client
from cellexport.v1.cell_export_pb2 import GetCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import TOKEN, Unit, accepts, eventually, free_port, request

CONNECTIONS = 32
CALLS = 6_000
ROUNDS = 5
TICKS = os.sysconf("SC_CLK_TCK")
GET = request("GET /demo/__export", f"Authorization: Bearer {TOKEN}")
HELLO = request("GET /")


@dataclass
class Measurement:
    """A way to request a status, and the processes that spend CPU time on it."""

    name: str
    load: Callable[[int], Awaitable[None]]
    pids: dict[str, int]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Unit(Path(directory) / "unit") as unit:
        unit.add_cell("demo")
        server, gateway = unit.start_server(), unit.start_gateway()
        flask_port, echo_port = free_port(), free_port()
        helpers = [_start("flask", flask_port), _start("echo", echo_port)]
        try:
            results = asyncio.run(
                _measure(
                    [
                        Measurement(
                            "GET over HTTP",
                            lambda calls: _http(unit.http_port, GET, calls),
                            {"gateway": gateway.process.pid, "server": server.process.pid},
                        ),
                        Measurement(
                            "bare Flask", lambda calls: _http(flask_port, HELLO, calls), {"flask": helpers[0].pid}
                        ),
                        Measurement(
                            "GetCellExport over gRPC",
                            lambda calls: _get(unit.grpc_port, calls),
                            {"server": server.process.pid},
                        ),
                        Measurement(
                            "bare grpc.aio echo", lambda calls: _echo(echo_port, calls), {"echo": helpers[1].pid}
                        ),
                    ]
                )
            )
        finally:
            for helper in helpers:
                helper.terminate()
                helper.wait(10)
    _report(results)


async def _measure(measurements: list[Measurement]) -> dict[str, dict[str, float]]:
    """Return the CPU time of a call in each process, in µs: the median over rounds of alternating measurements."""
    found: dict[str, dict[str, list[float]]] = {m.name: {part: [] for part in m.pids} for m in measurements}
    for measurement in measurements:
        await measurement.load(CALLS // 4)
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        for measurement in measurements:
            before = {part: _cpu_seconds(pid) for part, pid in measurement.pids.items()}
            await measurement.load(CALLS)
            for part, pid in measurement.pids.items():
                found[measurement.name][part].append((_cpu_seconds(pid) - before[part]) / CALLS * 1e6)
    return {name: {part: statistics.median(times) for part, times in parts.items()} for name, parts in found.items()}


def _report(results: dict[str, dict[str, float]]) -> None:
    totals = {name: sum(parts.values()) for name, parts in results.items()}
    print(f"{'µs of CPU a call':28}{'total':>8}")
    for name, parts in results.items():
        shares = ", ".join(f"{part} {time:.0f}" for part, time in parts.items()) if len(parts) > 1 else ""
        print(f"{name:28}{totals[name]:8.0f}  {shares}")
    print(f"\nGET / bare Flask: {totals['GET over HTTP'] / totals['bare Flask']:.2f}")
    print(f"GetCellExport / bare echo: {totals['GetCellExport over gRPC'] / totals['bare grpc.aio echo']:.2f}")


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its descendants."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(_cpu_seconds(int(child)) for child in children)


async def _share(calls: int, work: Callable[[int], Awaitable[None]]) -> None:
    await asyncio.gather(*(work(calls // CONNECTIONS) for _ in range(CONNECTIONS)))


async def _http(port: int, text: bytes, calls: int) -> None:
    async def ask(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            writer.write(text)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    await _share(calls, ask)


async def _get(port: int, calls: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub, message = CellExportServiceStub(channel), GetCellExportRequest(cell="demo")

        async def ask(count: int) -> None:
            for _ in range(count):
                await stub.GetCellExport(message, metadata=client.bearer(TOKEN), timeout=10)

        await _share(calls, ask)


async def _echo(port: int, calls: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bench.Bench/Echo")

        async def ask(count: int) -> None:
            for _ in range(count):
                await call(b"\x0a\x04demo", metadata=client.bearer(TOKEN), timeout=10)

        await _share(calls, ask)


def _start(what: str, port: int) -> subprocess.Popen[bytes]:
    helper = subprocess.Popen([sys.executable, __file__, what, str(port)], cwd=Path(__file__).parent)
    eventually(lambda: accepts(port))
    return helper


def flask_app() -> object:
    """Return the smallest possible Flask application, to compare the gateway with."""
    from flask import Flask

    app = Flask("bare")
    app.add_url_rule("/", view_func=lambda: "hello")
    return app


def _serve_flask(port: int) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.log import LogLevels
    from granian.server.mp import MPServer

    MPServer(
        "bench:flask_app",
        factory=True,
        address="127.0.0.1",
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=1,
        blocking_threads=32,
        log_level=LogLevels.error,
    ).serve()


async def _serve_echo(port: int) -> None:
    async def echo(message: bytes, context: object) -> bytes:
        return message

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("bench.Bench", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:2] == ["flask"]:
        _serve_flask(int(sys.argv[2]))
    elif sys.argv[1:2] == ["echo"]:
        asyncio.run(_serve_echo(int(sys.argv[2])))
    else:
        main()
