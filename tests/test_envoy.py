"""Two servers behind Envoy, configured as in examples/envoy: no request fails when servers die or are replaced."""

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import pytest

import envoy_proxy
from canary import steady
from cellexport.environment import Environment
from cellexport.v1 import cell_export_pb2, exporter_pb2
from cellexport.v1.cell_export_pb2 import Outcome
from certificates import Authority
from redis_server import DURABLE, RedisServer
from redis_server import running as running_redis
from server.rpc.listener import MOST_CALLS, GrpcListener
from traffic import Caller, GrpcCaller, HttpCaller, export
from unit import HandExporter, Program, Unit, eventually, free_port, meanwhile, needs, refused
from watchers import following

# The seconds until Envoy notices that a server shuts down: two failed health checks, one second apart, and the last
# check may take one second.
NOTICE_SECONDS = 3
DRAIN_SECONDS = NOTICE_SECONDS + 1


@dataclass
class Mesh:
    """A unit with two servers that callers reach only through Envoy. Envoy calls the servers over mTLS."""

    unit: Unit
    store: RedisServer
    authority: Authority
    ports: list[int]
    envoy: envoy_proxy.Envoy
    servers: list[Program]

    def log(self, number: int) -> Path:
        return self.unit.directory / f"events-{number}.log"

    def start(self, number: int, *, drain: int = DRAIN_SECONDS) -> Program:
        chain = self.authority.issue(f"server-{number}")
        return self.unit.start_server(
            CELLEXPORT_GRPC_LISTEN=f"127.0.0.1:{self.ports[number]}",
            CELLEXPORT_GRPC_TLS_CERT=str(chain.certificate),
            CELLEXPORT_GRPC_TLS_KEY=str(chain.key),
            CELLEXPORT_GRPC_TLS_CLIENT_CA=str(self.authority.file),
            CELLEXPORT_EVENT_LOG=str(self.log(number)),
            CELLEXPORT_DRAIN_SECONDS=str(drain),
            # Short ages make the servers close connections during the tests, which must fail no request either.
            CELLEXPORT_CONNECTION_AGE_SECONDS="3",
            CELLEXPORT_CONNECTION_GRACE_SECONDS="5",
        )

    def replace(self, number: int) -> None:
        """Start a server again once Envoy sends it no calls, and wait until Envoy sends calls to the new process."""
        eventually(lambda: self.ports[number] not in self.envoy.given_calls())
        self.servers[number] = self.start(number)
        eventually(lambda: self.ports[number] in self.envoy.given_calls())

    def asked(self, number: int) -> list[float]:
        """Return the times at which this server's event log says that it returned a status, in seconds since 1970."""
        lines = [line for line in self.log(number).read_text().splitlines() if '"cell.export.status"' in line]
        return [datetime.fromisoformat(line.split(",")[0]).timestamp() for line in lines]


@pytest.fixture
def mesh(unit: Unit, tmp_path: Path) -> Iterator[Mesh]:
    with running_redis(tmp_path / "redis", *DURABLE) as store:
        unit.settings["CELLEXPORT_STORE"] = store.url
        authority, ports = Authority(tmp_path, "ca"), [free_port(), free_port()]
        with envoy_proxy.running(tmp_path, ports, authority) as proxy:
            unit.grpc_port = proxy.port
            made = Mesh(unit, store, authority, ports, proxy, [])
            made.servers = [made.start(0, drain=0), made.start(1, drain=0)]
            eventually(lambda: proxy.given_calls() == set(ports))
            eventually(store.is_settled)
            yield made


@pytest.mark.fault("F11")
@needs("redis-server")
def test_servers_that_are_killed_or_replaced_behind_envoy_fail_no_request(mesh: Mesh) -> None:
    unit = mesh.unit
    unit.start_gateway()
    target = f"127.0.0.1:{unit.grpc_port}"
    eventually(lambda: unit.http().status == 200)
    callers: list[Caller] = [HttpCaller(ports=[unit.http_port]) for _ in range(5)]
    callers += [GrpcCaller(target=target) for _ in range(3)]

    with ExitStack() as stack:
        followers = [stack.enter_context(following(unit)) for _ in range(4)]
        for caller in callers:
            stack.enter_context(meanwhile(caller.run))
        stack.enter_context(mostly_ready(unit))

        with meanwhile(partial(export, target)):
            mesh.servers[0].kill()
            mesh.replace(0)
            # Server 1 was started without a drain, so Envoy notices its shutdown only by refused calls.
            assert mesh.servers[1].terminate() == 0
            mesh.replace(1)
            for number in (0, 1):
                drain(mesh, number)
                mesh.replace(number)
        newest = unit.get()
        assert newest.last_outcome.result == Outcome.RESULT_SUCCEEDED
        for follower in followers:
            follower.judge()
            assert eventually(lambda f=follower: f.statuses()[-1].cell_export == newest)  # type: ignore[misc]
    shares = [len(mesh.asked(number)) for number in (0, 1)]
    outcomes = sum((caller.outcomes for caller in callers), Counter[str]())
    assert {outcome.split()[0] for outcome in outcomes} == {"200", "OK"}, outcomes
    # Each caller made enough requests to meet every replacement.
    assert min(caller.outcomes.total() for caller in callers) > 20
    assert max(caller.slowest for caller in callers) < 3
    for follower in followers:
        follower.judge()

    assert min(shares) > sum(shares) / 4


@contextmanager
def mostly_ready(unit: Unit) -> Iterator[None]:
    """Check that the gateway is never unready for longer than Envoy takes to notice that a server shuts down."""
    longest, since = 0.0, steady()

    def ask(over: threading.Event) -> None:
        nonlocal longest, since
        while not over.wait(0.1):
            if unit.http(path="/readyz", token=None).status == 200:
                since = steady()
            longest = max(longest, steady() - since)

    with meanwhile(ask):
        yield
    assert longest < NOTICE_SECONDS + 1


def drain(mesh: Mesh, number: int) -> None:
    """Shut a server down, and check that Envoy sends it no calls once Envoy has noticed the shutdown."""
    server = mesh.servers[number]
    server.signal(signal.SIGTERM)
    eventually(lambda: mesh.ports[number] not in mesh.envoy.given_calls())
    known = time.time()
    assert server.process.wait(60) == 0
    # The server served calls for half a second more, so a call from Envoy would be in its event log.
    assert time.time() - known > 0.5
    assert mesh.asked(number)[-1] < known + 0.3


@needs("redis-server")
def test_envoy_passes_refusals_on_and_retries_do_not_multiply(mesh: Mesh) -> None:
    unit = mesh.unit
    unit.start_gateway()

    # A caller can change neither Envoy's time limits nor its retries.
    with unit.channel() as channel:
        meddling = HandExporter(channel)
        meddling.metadata += (("x-envoy-upstream-rq-timeout-ms", "100"),)
        assert meddling.claim(wait=1) is None
    mesh.store.kill()
    # Callers must get the same refusal before and after Envoy has noticed that no server is SERVING.
    for _ in range(2):
        answer = unit.http()
        assert (answer.status, answer.code) == (503, "PR503-SV-0003")
        with unit.channel() as channel, pytest.raises(grpc.RpcError) as error:
            HandExporter(channel).claim(wait=0)
        assert refused(error) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        eventually(lambda: not mesh.envoy.given_calls())
    lines = [line for server in mesh.servers for line in server.lines() if line["message"] == "call refused"]
    assert [line["method"] for line in lines].count("ClaimExport") == 2

    for server in mesh.servers:
        server.kill()
    before = mesh.envoy.stats("http.callers.downstream_rq_")["total"]
    with unit.channel() as channel, pytest.raises(grpc.RpcError) as error:
        HandExporter(channel).claim(wait=0)

    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert mesh.envoy.stats("http.callers.downstream_rq_")["total"] == before + 1
    assert unit.http().code == "PR503-SV-0002"


def routes() -> list[dict[str, Any]]:
    (listener,) = envoy_proxy.configuration()["static_resources"]["listeners"]
    (filtered,) = listener["filter_chains"][0]["filters"]
    (host,) = filtered["typed_config"]["route_config"]["virtual_hosts"]
    return list(host["routes"])


def route(path: str) -> dict[str, Any]:
    """Return the first route in Envoy's configuration that matches this path, as Envoy does."""
    matching: dict[str, Callable[[Any], bool]] = {
        "path": lambda value: bool(value == path),
        "prefix": path.startswith,
        "safe_regex": lambda value: re.fullmatch(value["regex"], path) is not None,
    }
    found = next(each for each in routes() if all(matching[kind](value) for kind, value in each["match"].items()))
    return dict(found["route"])


def test_envoy_retries_the_same_methods_as_our_own_channel() -> None:
    config = json.loads(files("cellexport").joinpath("service_config.json").read_text())
    safe = {f"/{name['service']}/{name['method']}" for method in config["methodConfig"] for name in method["name"]}
    services = [
        cell_export_pb2.DESCRIPTOR.services_by_name["CellExportService"],
        exporter_pb2.DESCRIPTOR.services_by_name["ExporterService"],
    ]
    paths = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}

    assert {path for path in paths if "reset" in route(path)["retry_policy"]["retry_on"]} == safe
    assert {path for path in paths if route(path)["timeout"] == "0s"} == {
        "/cellexport.v1.CellExportService/WatchCellExport",
        "/cellexport.v1.ExporterService/ClaimExport",
    }


def test_envoy_agrees_with_the_servers_defaults() -> None:
    server_options = dict(GrpcListener.read(Environment({})).options())
    (cluster,) = envoy_proxy.configuration()["static_resources"]["clusters"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    http2 = options["explicit_http_config"]["http2_protocol_options"]
    least = server_options["grpc.http2.min_ping_interval_without_data_ms"]
    assert seconds(http2["connection_keepalive"]["interval"]) * 1000 >= 2 * least
    (limits,) = cluster["circuit_breakers"]["thresholds"]
    assert limits["max_requests"] == MOST_CALLS
    (check,) = cluster["health_checks"]
    noticed = check["unhealthy_threshold"] * seconds(check["interval"]) + seconds(check["timeout"])
    assert noticed == NOTICE_SECONDS
    # Envoy ends a call that is idle for longer than `idle_timeout`. A quiet watch sends only a keep-alive every 45
    # seconds, so leave room for three.
    assert seconds(route("/cellexport.v1.CellExportService/WatchCellExport")["idle_timeout"]) > 3 * 45
    # A claim is idle while it waits for an export, for 30 seconds at most.
    assert seconds(route("/cellexport.v1.ExporterService/ClaimExport")["idle_timeout"]) > 30


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))
