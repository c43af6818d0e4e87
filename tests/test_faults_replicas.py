"""Several servers, gateways and exporters on one unit: the status stays true when any of them dies."""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import grpc
import pytest

import snapshots
from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, Outcome, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from oracle import Oracle
from redis_server import DURABLE, RedisServer
from unit import TOKEN, HandExporter, Program, Unit, answered, eventually, free_port, meanwhile, needs, refused


@dataclass
class Replicas:
    """A unit with two servers whose store is Redis, or with one server whose store is SQLite."""

    unit: Unit
    ports: list[int] = field(default_factory=list)
    servers: dict[int, Program] = field(default_factory=dict)

    def start(self, port: int) -> None:
        self.servers[port] = self.unit.start_server(CELLEXPORT_GRPC_LISTEN=f"127.0.0.1:{port}")
        # Call until the server answers: gRPC channels of one process share connections, and after a failed connect to
        # this port gRPC waits before it tries again.
        eventually(lambda: answered(self.unit.get, "demo", TOKEN, port))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", *DURABLE)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs("redis-server"))])
def replicas(request: pytest.FixtureRequest, unit: Unit) -> Replicas:
    ports = [unit.grpc_port]
    if request.param == "redis":
        store: RedisServer = request.getfixturevalue("store")
        unit.settings["CELLEXPORT_STORE"] = store.url
        ports.append(free_port())
    unit.settings["CELLEXPORT_GRPC_TARGET"] = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    replicas = Replicas(unit, ports)
    for port in ports:
        replicas.start(port)
    if request.param == "redis":
        eventually(store.is_settled)
    return replicas


@pytest.mark.fault("F50")
@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_zombie_changes_nothing_of_the_export_that_follows_it(replicas: Replicas) -> None:
    unit = replicas.unit
    unit.add_large_file(300)
    zombie = unit.start_exporter()

    with Oracle(unit, ports=replicas.ports):
        unit.begin("one")
        eventually(lambda: unit.get().exportation.progress_percent > 5)

        zombie.signal(signal.SIGSTOP)
        assert unit.wait_until_ready().last_outcome.reason == Outcome.REASON_LEASE_EXPIRED
        unit.start_exporter()
        # The second export has the same name, so the paused exporter, if it went on, would rename its zip to the same
        # file.
        unit.begin("one")
        assert unit.wait_until_ready(within=60).last_outcome.result == Outcome.RESULT_SUCCEEDED
        snapshot = unit.snapshots / "demo" / "one.zip"
        content, before = snapshot.read_bytes(), unit.get()
        zombie.signal(signal.SIGCONT)
        zombie.wait_for_log("export abandoned: it no longer belongs to this exporter")

        assert unit.get() == before
        assert snapshot.read_bytes() == content
        assert [path.name for path in (unit.snapshots / "demo").iterdir()] == ["one.zip"]
    snapshots.read(snapshot)


@pytest.mark.fault("F52")
@pytest.mark.long
@pytest.mark.timeout(180)
def test_of_a_hundred_simultaneous_starts_exactly_one_wins(replicas: Replicas) -> None:
    unit = replicas.unit
    channels = [client.channel(f"127.0.0.1:{port}") for port in replicas.ports]
    stubs = [CellExportServiceStub(channel) for channel in channels]

    def start(number: int) -> str:
        try:
            stubs[number % len(stubs)].StartCellExport(
                StartCellExportRequest(cell="demo"), metadata=client.bearer(TOKEN), timeout=20
            )
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    def round_of_starts() -> None:
        outcomes = list(pool.map(start, range(100)))
        assert (outcomes.count("OK"), outcomes.count("FAILED_PRECONDITION")) == (1, 99)
        assert unit.cancel().state == CellExport.STATE_READY

    with ThreadPoolExecutor(100) as pool:
        # Run a round before the oracle counts resources: servers start threads and open connections for it, and keep
        # them.
        round_of_starts()
        with Oracle(unit, ports=replicas.ports, exporter=False):
            for _ in range(50):
                round_of_starts()
    for channel in channels:
        channel.close()


@pytest.mark.fault("F72")
@pytest.mark.long
@pytest.mark.timeout(120)
def test_twenty_queued_exports_run_once_each_and_in_order_although_servers_restart(replicas: Replicas) -> None:
    unit = replicas.unit
    cells = [f"cell{number:02}" for number in range(20)]
    for cell in cells:
        unit.add_cell(cell, {"file": b"x" * 100_000})

    with Oracle(unit, cells=cells[:3], ports=replicas.ports):
        for cell in cells:
            unit.begin(cell, cell=cell)
        for port, server in list(replicas.servers.items()):
            server.kill()
            replicas.start(port)
        assert all(unit.get(cell).exportation.progress_percent == 0 for cell in cells)
        exporters = [unit.start_exporter() for _ in range(2)]
        for cell in cells:
            assert unit.wait_until_ready(cell).last_outcome.result == Outcome.RESULT_SUCCEEDED
    for cell in cells:
        assert [path.name for path in (unit.snapshots / cell).iterdir()] == [f"{cell}.zip"]
    begun = [
        [line["cell"] for line in exporter.lines() if line["message"] == "export started"] for exporter in exporters
    ]
    assert all(cells_of_one == sorted(cells_of_one) for cells_of_one in begun)
    assert sorted(chain(*begun)) == cells
    events = (unit.directory / "log" / "event.log").read_text()
    assert events.count('"cell.export",') == 20


@pytest.mark.fault("F72")
def test_a_full_queue_refuses_the_next_start_and_says_so(replicas: Replicas) -> None:
    unit = replicas.unit
    unit.settings["CELLEXPORT_QUEUE_LIMIT"] = "2"

    for port, server in list(replicas.servers.items()):
        server.kill()
        replicas.start(port)
    unit.start_gateway()
    for cell in ("one", "two", "three"):
        unit.add_cell(cell)
    unit.begin(cell="one")
    unit.begin(cell="two")
    answer = unit.http("POST", "/three/__export")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "PR503-SV-0001", "1")
    with pytest.raises(grpc.RpcError) as refusal:
        unit.begin(cell="three")
    assert refused(refusal) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert unit.get("three").state == CellExport.STATE_READY
    with unit.channel() as channel:
        assert HandExporter(channel).must_claim().cell == "one"
    unit.begin(cell="three")


@dataclass(frozen=True, slots=True)
class Acknowledged:
    when: float
    percent: int


def test_no_read_shows_less_than_the_last_report_acknowledged_before_it_began(replicas: Replicas) -> None:
    """Compare each status that the oracle polled at any server with the reports acknowledged before its request."""
    unit = replicas.unit
    cells = ("demo", "two", "three")
    for cell in cells[1:]:
        unit.add_cell(cell)
    acknowledged: dict[str, list[Acknowledged]] = {cell: [] for cell in cells}

    with Oracle(unit, cells=cells, ports=replicas.ports, exporter=False) as oracle:
        for cell in cells:
            unit.begin(cell=cell)
        threads = [
            threading.Thread(target=report_all, args=(unit, replicas.ports, seed, acknowledged)) for seed in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for (_, cell), answers in oracle.history.items():
        assert len(answers) > 20
        for seen in answers:
            before = [report.percent for report in acknowledged[cell] if report.when < seen.asked]
            assert seen.status.exportation.progress_percent >= max(before, default=0)


def report_all(unit: Unit, ports: list[int], seed: int, acknowledged: dict[str, list[Acknowledged]]) -> None:
    """Claim an export, and send its reports to random servers, some of them late and some twice."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        exporters = [HandExporter(stack.enter_context(unit.channel(port))) for port in ports]
        claimed = exporters[0].must_claim()
        pending: list[int] = []
        for percent in range(1, 100):
            threading.Event().wait(0.01)
            pending.append(percent)
            chance.shuffle(pending)
            sent = pending[-1]
            chance.choice(exporters).report(claimed, sent, sent)
            acknowledged[claimed.cell].append(Acknowledged(time.monotonic(), sent))
            if chance.random() < 0.8:
                pending.clear()


@pytest.mark.fault("F01", "F02", "F32")
@pytest.mark.long
@pytest.mark.timeout(300)
@needs("redis-server")
@pytest.mark.parametrize("seed", [1, 2])
def test_no_status_is_false_while_programs_are_killed_and_restarted(unit: Unit, store: RedisServer, seed: int) -> None:
    """Kill servers, exporters, the gateway and Redis for half a minute, one program after the other in random order."""
    chance = random.Random(seed)
    unit.add_large_file(150)
    unit.settings["CELLEXPORT_STORE"] = store.url
    replicas = Replicas(unit, [unit.grpc_port, free_port()])
    unit.settings["CELLEXPORT_GRPC_TARGET"] = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in replicas.ports)
    for port in replicas.ports:
        replicas.start(port)
    gateway = unit.start_gateway()
    exporters = [unit.start_exporter() for _ in range(2)]
    eventually(store.is_settled)
    over = time.monotonic() + 30

    with Oracle(unit, ports=replicas.ports), contextlib.ExitStack() as stack:
        stack.enter_context(starting(unit, replicas))
        while time.monotonic() < over:
            threading.Event().wait(chance.uniform(0.5, 2.5))
            victim = chance.choice(["server", "exporter", "gateway", "redis"])
            if victim == "server":
                port = chance.choice(replicas.ports)
                replicas.servers[port].kill()
                replicas.start(port)
            elif victim == "exporter":
                number = chance.randrange(2)
                exporters[number].kill()
                exporters[number] = unit.start_exporter()
            elif victim == "gateway":
                gateway.kill()
                gateway = unit.start_gateway()
            else:
                store.kill()
                store.restart()
        stack.close()
        eventually(store.is_settled)
        status = unit.wait_until_ready_or_away(within=60)

        assert status.HasField("last_outcome")
    # After all the kills an export must run as usual.
    unit.begin("after")

    assert unit.wait_until_ready(within=60).last_outcome.result == Outcome.RESULT_SUCCEEDED


@contextlib.contextmanager
def starting(unit: Unit, replicas: Replicas) -> Iterator[None]:
    """Start an export whenever a server accepts one."""

    def start(over: threading.Event) -> None:
        with contextlib.ExitStack() as stack:
            stubs = [CellExportServiceStub(stack.enter_context(unit.channel(port))) for port in replicas.ports]
            number = 0
            while not over.wait(0.3):
                number += 1
                with contextlib.suppress(grpc.RpcError):
                    stubs[number % 2].StartCellExport(
                        StartCellExportRequest(cell="demo"), metadata=client.bearer(TOKEN), timeout=3
                    )

    with meanwhile(start):
        yield


@needs("redis-server")
def test_a_gateway_goes_on_with_the_server_that_is_left(unit: Unit, store: RedisServer) -> None:
    unit.settings["CELLEXPORT_STORE"] = store.url
    replicas = Replicas(unit, [unit.grpc_port, free_port()])
    unit.settings["CELLEXPORT_GRPC_TARGET"] = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in replicas.ports)
    for port in replicas.ports:
        replicas.start(port)
    unit.start_gateway()
    eventually(lambda: unit.http().status == 200)
    unit.begin("shared")
    replicas.servers[replicas.ports[0]].kill()
    eventually(lambda: unit.http().status == 200, within=3)
    assert unit.status()["exportation_name"] == "shared"

    with unit.channel(replicas.ports[1]) as channel:
        stub = CellExportServiceStub(channel)
        answer = stub.GetCellExport(GetCellExportRequest(cell="demo"), metadata=client.bearer(TOKEN), timeout=3)
        assert answer.cell_export.exportation.name == "shared"
        assert answered(HandExporter(channel).must_claim)
