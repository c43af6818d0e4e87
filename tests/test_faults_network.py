"""Networks that are late, slow, silent or cut: answers over HTTP and gRPC, and the state afterwards."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import snapshots
from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, Outcome
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from cellexport.v1.exporter_pb2 import ClaimExportRequest
from chaosproxy import ChaosProxy
from oracle import Oracle
from unit import CUT_OFF, TOKEN, Answer, HandExporter, Unit, answered, eventually, needs, needs_root, request

# The longest time in which the gateway answers any request, whatever happens to the network, in seconds.
IN_TIME = 3.0
READY = (200, {"status": "ready"})
AWAY = (503, "PR503-SV-0002")
LATE = (504, "PR504-SV-0001")


@pytest.fixture
def proxy(unit: Unit) -> Iterator[ChaosProxy]:
    """Start a server and a gateway that are connected through a proxy, and yield the proxy."""
    unit.start_server()
    with ChaosProxy(unit.grpc_port) as proxy:
        unit.start_gateway(CELLEXPORT_GRPC_TARGET=f"127.0.0.1:{proxy.port}")
        assert unit.http().status == 200
        yield proxy


def warm(unit: Unit, proxy: ChaosProxy) -> None:
    """Send 40 slow requests at once, so that the gateway starts all its threads before the oracle counts them."""
    proxy.latency = 0.3
    with ThreadPoolExecutor(40) as clients:
        assert list(clients.map(lambda _: outcome(unit.http()), range(40))) == [READY] * 40
    proxy.latency = 0


def timed(unit: Unit) -> tuple[float, Answer]:
    """Request the status over HTTP; return the seconds that the answer took on the steady clock, and the answer."""
    begun = steady()
    answer = unit.http()
    return steady() - begun, answer


def outcome(answer: Answer) -> tuple[int, object]:
    """Return the HTTP status with the JSON of a 200, or with the code of an error. Raise if the body was cut short."""
    return answer.status, answer.json() if answer.status == 200 else answer.code


def quiet(unit: Unit) -> bool:
    """Return whether no program has logged an error or a traceback."""
    return not any(
        line["level"] in ("error", "critical") or "trace" in line
        for program in unit.programs
        for line in program.lines()
    ) and not any("Traceback" in program.log.read_text() for program in unit.programs)


@pytest.mark.fault("F16")
@pytest.mark.long
def test_a_server_that_answers_late_is_a_504_in_time_and_costs_no_thread(unit: Unit, proxy: ChaosProxy) -> None:
    warm(unit, proxy)
    with Oracle(unit), ThreadPoolExecutor(16) as clients:
        proxy.latency = 10
        answers = list(clients.map(lambda _: timed(unit), range(16 * 8)))
        assert {outcome(answer) for _, answer in answers} == {LATE}
        assert max(seconds for seconds, _ in answers) < IN_TIME
        proxy.latency = 0
        proxy.reset_all()
        eventually(lambda: unit.http().status == 200)

    assert quiet(unit)


@pytest.mark.fault("F16")
def test_a_server_that_is_slow_to_greet_is_reached_all_the_same(unit: Unit, proxy: ChaosProxy) -> None:
    with Oracle(unit):
        proxy.latency = 0.7
        proxy.reset_all()
        seconds, answer = timed(unit)
        # A slow server is not unavailable: the gateway must not answer 503.
        assert outcome(answer) in (READY, LATE)
        assert seconds < IN_TIME
        eventually(lambda: outcome(unit.http()) == READY)


@pytest.mark.fault("F16")
def test_a_thousand_calls_whose_deadline_passes_are_stopped_in_the_server_too(unit: Unit) -> None:
    unit.start_server()
    with Oracle(unit, exporter=False), unit.channel() as channel:
        exporter = HandExporter(channel)
        codes = set()

        for batch in range(10):
            calls = [
                exporter.stub.ClaimExport.future(
                    ClaimExportRequest(request_id=f"{batch:08}{number:08}", wait=Duration(seconds=30)),
                    metadata=exporter.metadata,
                    timeout=0.3,
                )
                for number in range(100)
            ]
            codes |= {call.code() for call in calls}
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
        started = unit.begin()
        # If one of the thousand expired claims still waited in the server, it would have taken this export.
        claimed = exporter.must_claim()
        assert claimed.lease.epoch == started.revision + 1
        exporter.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)


@pytest.mark.fault("F16", "F19")
def test_the_deadline_of_a_call_through_a_silent_network_is_the_callers_own(unit: Unit, proxy: ChaosProxy) -> None:
    with client.channel(f"127.0.0.1:{proxy.port}") as channel:
        stub = CellExportServiceStub(channel)
        asked = GetCellExportRequest(cell="demo")
        stub.GetCellExport(asked, metadata=client.bearer(TOKEN), timeout=60)
        proxy.black_hole = True
        begun, begun_steady = time.monotonic(), steady()
        with pytest.raises(grpc.RpcError) as raised:
            stub.GetCellExport(asked, metadata=client.bearer(TOKEN), timeout=0.5)
        took, took_steady = time.monotonic() - begun, steady() - begun_steady

    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert took > 0.4
    assert took_steady < 1.5


@pytest.mark.fault("F18")
def test_a_status_whose_answer_is_cut_anywhere_is_asked_for_again(unit: Unit, proxy: ChaosProxy) -> None:
    with Oracle(unit):
        for count in range(201):
            proxy.cut_next(count)
            seconds, answer = timed(unit)
            assert outcome(answer) == READY, count
            assert seconds < IN_TIME, count
            # If the answer was shorter than `count` bytes, the cut is still to come. Withdraw it, so that it doesn't
            # hit other traffic.
            proxy.cut_next(None)
            assert outcome(unit.http()) == READY

    # Most of the 201 cuts hit an answer, because an answer is only slightly shorter than 200 bytes, the longest cut.
    assert proxy.resets > 100
    assert quiet(unit)


@pytest.mark.fault("F18")
def test_if_every_answer_is_cut_the_status_is_503_and_never_half(unit: Unit, proxy: ChaosProxy) -> None:
    seen = set()
    with Oracle(unit):
        for count in range(0, 201, 10):
            proxy.cut_each = count
            proxy.reset_all()
            for _ in range(3):
                seconds, answer = timed(unit)
                assert answer.status == 503 or outcome(answer) == READY
                assert answer.status == 200 or outcome(answer) == AWAY
                assert seconds < IN_TIME
                seen.add(answer.status)
        proxy.cut_each = None
        eventually(lambda: unit.http().status == 200, within=3)

    assert 503 in seen
    assert quiet(unit)


@pytest.mark.fault("F18")
def test_a_call_whose_answer_is_cut_anywhere_is_unavailable(unit: Unit, proxy: ChaosProxy) -> None:
    codes = set()
    with client.channel(f"127.0.0.1:{proxy.port}") as channel:
        stub = CellExportServiceStub(channel)

        def ask() -> CellExport:
            asked = GetCellExportRequest(cell="demo")
            return stub.GetCellExport(asked, metadata=client.bearer(TOKEN), timeout=60).cell_export

        for count in range(201):
            eventually(lambda: answered(ask))
            proxy.cut_next(count)
            try:
                assert ask().state == CellExport.STATE_READY
            except grpc.RpcError as error:
                codes.add(error.code())
            proxy.cut_next(None)

    assert codes == {grpc.StatusCode.UNAVAILABLE}
    assert proxy.resets > 100


@pytest.mark.fault("F18")
def test_a_start_whose_answer_is_cut_is_not_asked_for_again(unit: Unit, proxy: ChaosProxy) -> None:
    with Oracle(unit, exporter=False):
        proxy.cut_next(0)
        answer = unit.http("POST", body=b'{"Name":"once"}')
        # The gateway can't know whether the server has executed the start, so it must not repeat it. The status shows
        # that the server has.
        assert outcome(answer) == AWAY
        assert unit.get().exportation.name == "once"


@pytest.mark.fault("F18")
def test_an_answer_that_is_cut_on_its_way_to_the_client_is_no_whole_one(unit: Unit, proxy: ChaosProxy) -> None:
    with ChaosProxy(unit.http_port) as front:
        for count in range(0, 1000, 9):
            front.cut_each = count
            with closing(HTTPConnection("127.0.0.1", front.port, timeout=60)) as connection:
                connection.request("GET", "/demo/__export", headers={"Authorization": f"Bearer {TOKEN}"})
                try:
                    body = connection.getresponse().read()
                except CUT_OFF:
                    continue
                assert json.loads(body) == {"status": "ready"}
        assert front.resets > 50


@pytest.mark.fault("F19")
def test_clients_that_go_away_meanwhile_leave_nothing_behind(unit: Unit, proxy: ChaosProxy) -> None:
    warm(unit, proxy)
    with Oracle(unit):
        proxy.latency = 30
        for _ in range(32):
            with socket.create_connection(("127.0.0.1", unit.http_port), 5) as gone:
                gone.sendall(request("GET /demo/__export", f"Authorization: Bearer {TOKEN}"))
        # This request waits until the gateway has given up one of the 32 others, each of which occupies a thread for as
        # long as a call may last.
        seconds, answer = timed(unit)
        assert outcome(answer) == LATE
        assert seconds < 2 * IN_TIME
        proxy.latency = 0
        proxy.reset_all()

        eventually(lambda: unit.http().status == 200)
        with ThreadPoolExecutor(32) as clients:
            answers = list(clients.map(lambda _: outcome(unit.http()), range(64)))

        assert answers == [READY] * 64

    assert quiet(unit)


@pytest.mark.fault("F30")
def test_a_slow_link_is_fast_enough(unit: Unit, proxy: ChaosProxy) -> None:
    with Oracle(unit):
        proxy.bandwidth = 8000
        answers = [timed(unit) for _ in range(10)]
    assert [outcome(answer) for _, answer in answers] == [READY] * 10
    assert max(seconds for seconds, _ in answers) < IN_TIME


@contextmanager
def slow_network() -> Iterator[list[str]]:
    """Yield the words before a command that run it in a separate network namespace, whose network passes 64 kbit/s."""
    shape = "tc qdisc add dev lo root tbf rate 64kbit burst 3000 latency 400ms"
    keeper = subprocess.Popen(["unshare", "-n", "sh", "-c", f"ip link set lo up mtu 1500 && {shape} && exec sleep 120"])
    inside = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net"]
    try:
        eventually(lambda: b" tbf " in subprocess.run([*inside, "tc", "qdisc"], capture_output=True, check=True).stdout)
        yield inside
    finally:
        keeper.kill()
        keeper.wait(10)


@pytest.mark.fault("F30")
@pytest.mark.long
@needs_root
@needs("tc")
@needs("curl")
def test_an_export_over_a_line_of_64_kbit_is_seen_in_time_and_succeeds(unit: Unit) -> None:
    unit.add_large_file(200)
    with slow_network() as inside:

        def ask(*more: str) -> tuple[int, str, float]:
            url = f"http://127.0.0.1:{unit.http_port}/demo/__export"
            curl = ["curl", "-s", "-H", f"Authorization: Bearer {TOKEN}", "-w", "\n%{http_code} %{time_total}"]
            output = subprocess.run([*inside, *curl, *more, url], capture_output=True, text=True, check=False).stdout
            body, _, line = output.rpartition("\n")
            code, seconds = line.split()
            return int(code), body, float(seconds)

        unit.start_server(*inside)
        unit.start("gateway", *inside)

        eventually(lambda: ask()[0] == 200)
        unit.start_exporter(*inside)
        assert ask("-d", '{"Name":"slow"}')[0] == 202
        seen = [ask()]
        while seen[-1][1] != '{"status":"ready"}':
            seen.append(ask())
    assert {code for code, _, _ in seen} == {200}
    assert max(seconds for _, _, seconds in seen) < IN_TIME
    assert len(seen) > 1
    snapshots.read(unit.snapshots / "demo" / "slow.zip")

    assert quiet(unit)
