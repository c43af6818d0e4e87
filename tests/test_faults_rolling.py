"""Rolling restarts: servers and gateways are replaced one after the other, and no request fails."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from canary import steady
from cellexport.v1.cell_export_pb2 import Outcome
from redis_server import DURABLE, RedisServer
from redis_server import running as running_redis
from traffic import HttpCaller, export
from unit import Program, Unit, eventually, free_port, meanwhile, needs
from watchers import following

ROUNDS = 10
CALLERS = 8


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis", *DURABLE) as server:
        yield server


@pytest.mark.fault("F11")
@pytest.mark.long
@pytest.mark.timeout(240)
@needs("redis-server")
def test_rolling_restarts_of_servers_and_gateways_fail_no_request(unit: Unit, store: RedisServer) -> None:
    unit.settings["CELLEXPORT_STORE"] = store.url
    servers, gateways = [free_port(), free_port()], [free_port(), free_port()]
    unit.settings["CELLEXPORT_GRPC_TARGET"] = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in servers)

    def start_server(port: int) -> Program:
        server = unit.start_server(CELLEXPORT_GRPC_LISTEN=f"127.0.0.1:{port}")
        eventually(lambda: any(line.get("status") == "SERVING" for line in server.lines()))
        return server

    def start_gateway(port: int) -> Program:
        unit.http_port = port
        gateway = unit.start_gateway()
        eventually(lambda: unit.http(path="/readyz", token=None).status == 200)
        return gateway

    programs = {port: start_server(port) for port in servers}
    programs |= {port: start_gateway(port) for port in gateways}
    eventually(store.is_settled)
    eventually(lambda: unit.http().status == 200)
    target = unit.settings["CELLEXPORT_GRPC_TARGET"]
    callers = [HttpCaller(ports=gateways) for _ in range(CALLERS)]
    begun = steady()

    with ExitStack() as stack:
        followers = [stack.enter_context(following(unit, target=target)) for _ in range(4)]
        for caller in callers:
            stack.enter_context(meanwhile(caller.run))

        with meanwhile(partial(export, target)):
            for _ in range(ROUNDS):
                for ports, start in ((servers, start_server), (gateways, start_gateway)):
                    for port in ports:
                        assert programs[port].terminate() == 0
                        programs[port] = start(port)
        newest = eventually(lambda: unit.get(port=servers[0]))
        assert newest.last_outcome.result == Outcome.RESULT_SUCCEEDED
        for follower in followers:
            assert eventually(lambda f=follower: f.statuses()[-1].cell_export == newest)  # type: ignore[misc]
    seconds = steady() - begun
    outcomes = sum((caller.outcomes for caller in callers), Counter[str]())
    assert {outcome[:3] for outcome in outcomes} == {"200"}
    # The callers try to send 200 requests a second. A machine with two processors that also starts a program each
    # second may not manage that, so half is enough.
    assert outcomes.total() / seconds > 100
    assert max(caller.slowest for caller in callers) < 3
    for follower in followers:
        follower.judge()
        percents = [message.cell_export.exportation.progress_percent for message in follower.statuses()[1:-1]]
        assert percents == sorted(percents)
        assert len(set(percents)) > 10
