"""Redis paused, killed, emptied, replaced by a replica, full, locked or loading, under the real programs."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import redis

from canary import steady
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from cellexport.v1.exporter_pb2 import ClaimedExport
from injection import slow_to_read
from oracle import Oracle, unchanged
from redis_server import DURABLE, RedisServer
from unit import HandExporter, Unit, answered, eventually, free_port, meanwhile, needs, refused

pytestmark = [needs("redis-server"), pytest.mark.timeout(120)]

# The longest time of an answer while Redis hangs, in seconds: a store operation fails after a second, and the answer
# follows within half a second.
STORE_SECONDS = 1.5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", *DURABLE)
    yield server
    server.stop()


@pytest.fixture
def unit(unit: Unit, store: RedisServer) -> Unit:
    """Return a unit with a server and a gateway, whose store is Redis and is settled (its records are trusted)."""
    use(unit, store)
    unit.start_server()
    unit.start_gateway()
    eventually(store.is_settled)
    return unit


@pytest.fixture
def exporter(unit: Unit) -> Iterator[HandExporter]:
    with unit.channel() as channel:
        yield HandExporter(channel)


def use(unit: Unit, store: RedisServer) -> None:
    unit.settings["CELLEXPORT_STORE"] = store.url


def begin_large(unit: Unit, name: str = "large") -> None:
    """Start an export that takes the bundled exporter eight seconds, and wait for its first progress."""
    unit.start_exporter(*slow_to_read(unit.add_large_file(20)))
    unit.begin(name)
    eventually(lambda: unit.get().exportation.progress_percent > 0)


def answers(unit: Unit) -> bool:
    return unit.http().status == 200


def must_be_away(unit: Unit) -> float:
    """Check that HTTP and gRPC answer in time that the store is unavailable.

    Return the seconds that the HTTP answer took, on the steady clock.
    """
    begun = steady()
    answer = unit.http()
    assert (answer.status, answer.code) == (503, "PR503-SV-0003")
    assert answer.headers["retry-after"] == "1"
    took = steady() - begun
    assert took < 3
    with pytest.raises(grpc.RpcError) as refusal:
        unit.get()
    assert refused(refusal) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    return took


@contextmanager
def living(exporter: HandExporter, claimed: ClaimedExport, done: int) -> Iterator[None]:
    """Report progress five times a second while the context is open, also after a report has failed."""
    sequences = iter(range(1000, 100_000))

    def report(over: threading.Event) -> None:
        while not over.wait(0.2):
            answered(exporter.report, claimed, next(sequences), done)

    with meanwhile(report):
        yield


def test_a_new_redis_says_nothing_for_a_lease_and_then_the_truth(unit: Unit) -> None:
    assert unit.status() == {"status": "ready"}
    assert unit.programs[0].wait_for_log("store settled")
    unit.programs[0].kill()
    # The store stays settled (its records are trusted): a server that starts later returns statuses without waiting for
    # a lease.
    unit.start_server()
    assert unit.get().state == CellExport.STATE_READY


@needs("strace")
@pytest.mark.fault("F31")
@pytest.mark.long
def test_a_paused_redis_is_reported_in_time_and_the_export_goes_on(unit: Unit, store: RedisServer) -> None:
    with Oracle(unit):
        begin_large(unit)
        exporter = unit.programs[-1]
        begun = time.monotonic()

        with store.paused():
            took = []
            while time.monotonic() - begun < 10:
                took.append(must_be_away(unit))
            # The median, because some answers are slow on a busy machine.
            assert sorted(took)[len(took) // 2] < STORE_SECONDS
            assert not (unit.snapshots / "demo" / "large.zip").exists()
        resumed = steady()
        eventually(lambda: answers(unit), within=2)
        assert steady() - resumed < 2
        status = unit.wait_until_ready(within=60)
        assert status.last_outcome.result == Outcome.RESULT_SUCCEEDED

    assert exporter.process.poll() is None


@pytest.mark.fault("F32")
def test_a_redis_that_was_killed_comes_back_with_all_that_was_acknowledged(
    unit: Unit, store: RedisServer, exporter: HandExporter
) -> None:
    unit.add_cell("waiting")
    with Oracle(unit, cells=("demo", "waiting"), exporter=False):
        unit.begin("kept")
        claimed = exporter.must_claim()
        unit.begin("queued", cell="waiting")
        exporter.report(claimed, 1, 64)
        before, queued = unit.get(), unit.get("waiting")
        store.kill()
        must_be_away(unit)
        store.restart()

        with living(exporter, claimed, 64):
            eventually(lambda: answers(unit))
            after = unit.get()
            assert after.exportation.start_time == before.exportation.start_time
            assert after.exportation.progress_percent == 64
            assert after.revision > before.revision
            eventually(store.is_settled)
            assert unit.get("waiting").exportation == queued.exportation
            assert exporter.must_claim().name == "queued"
        ended = exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)

        assert ended.last_outcome.name == "kept"


@needs("strace")
@pytest.mark.fault("F32")
def test_a_killed_redis_ends_no_export_of_the_bundled_exporter(unit: Unit, store: RedisServer) -> None:
    with Oracle(unit):
        begin_large(unit)
        store.kill()
        must_be_away(unit)
        store.restart()
        assert unit.wait_until_ready_or_away(within=60).last_outcome.result == Outcome.RESULT_SUCCEEDED


def test_an_emptied_redis_never_says_ready_and_living_exporters_restore_it(
    unit: Unit, store: RedisServer, exporter: HandExporter
) -> None:
    unit.add_cell("other")
    unit.begin("restored")
    claimed = exporter.must_claim()
    exporter.report(claimed, 1, 50)
    before = unit.get()

    with living(exporter, claimed, 50), Oracle(unit, cells=("demo", "other"), exporter=False) as oracle:
        with store.client() as client:
            client.flushall()
        emptied = time.monotonic()

        eventually(lambda: answers(unit), within=unit.lease_seconds)
        after = unit.get()
        assert after.exportation == before.exportation
        assert after.revision > before.revision
        eventually(store.is_settled)
        settled = time.monotonic()
        assert unit.get("other").state == CellExport.STATE_READY
        unit.begin("new", cell="other")

        assert exporter.must_claim().lease.epoch > claimed.lease.epoch
    reads = oracle.history[unit.grpc_port, "demo"]
    assert all(seen.status.state == CellExport.STATE_EXPORTING for seen in reads)
    early = [seen for seen in oracle.history[unit.grpc_port, "other"] if emptied < seen.asked < settled - 0.5]
    assert not early
    assert exporter.finish(claimed, Outcome.RESULT_SUCCEEDED).last_outcome.name == "restored"


@needs("strace")
def test_an_emptied_redis_and_a_dead_exporter_are_ready_after_a_lease(unit: Unit, store: RedisServer) -> None:
    begin_large(unit)
    unit.programs[-1].kill()

    with store.client() as client:
        client.flushall()
    begun, begun_steady = time.monotonic(), steady()
    must_be_away(unit)
    eventually(lambda: answers(unit))

    assert unit.lease_seconds - 0.5 < time.monotonic() - begun
    assert steady() - begun_steady < 2 * unit.lease_seconds + 1
    assert unit.status() == {"status": "ready"}


@pytest.mark.fault("F50")
def test_of_two_exporters_that_survive_an_emptied_redis_the_newer_has_the_cell(
    unit: Unit, store: RedisServer, exporter: HandExporter
) -> None:
    unit.begin("old")
    old = exporter.must_claim()
    unit.wait_until_ready()

    unit.begin("new")
    new = exporter.must_claim()
    exporter.report(new, 1, 20)
    with store.client() as client:
        client.flushall()
    eventually(lambda: answered(exporter.report, old, 2, 70), within=unit.lease_seconds)
    exporter.report(new, 2, 30)
    assert (unit.get().exportation.name, unit.get().exportation.progress_percent) == ("new", 30)
    with unchanged(unit), pytest.raises(grpc.RpcError) as refusal:
        exporter.report(old, 3, 80)

    assert refused(refusal)[0] in ("ABORTED", "NOT_FOUND")
    assert exporter.finish(new, Outcome.RESULT_SUCCEEDED).last_outcome.name == "new"


def test_a_zombie_that_redis_still_knows_ends_nothing_while_a_newer_exporter_writes(
    unit: Unit, store: RedisServer, exporter: HandExporter
) -> None:
    unit.begin("old")
    old = exporter.must_claim()

    with store.client() as client:
        before = client.hgetall("export:4:demo")
        unit.wait_until_ready()
        unit.begin("new")
        new = exporter.must_claim()
        # Put Redis back into its state from before the second claim. The snapshot directory still has the unfinished
        # snapshot (`.part`) of that claim's exporter.
        directory = unit.snapshots / "demo"
        part = directory / f"new.{new.lease.export_id}.{new.lease.epoch}.part"
        part.write_bytes(b"")
        client.delete("export:mark")
        client.hset("export:4:demo", mapping=before)
    eventually(lambda: not store.is_settled(), within=2)
    with pytest.raises(grpc.RpcError) as refusal:
        exporter.finish(old, Outcome.RESULT_SUCCEEDED)
    assert refused(refusal) == ("ABORTED", "LEASE_LOST")
    exporter.report(new, 1, 10)

    assert unit.get().exportation.name == "new"


def test_a_forged_lease_restores_no_export(unit: Unit, store: RedisServer, exporter: HandExporter) -> None:
    unit.begin("real")
    claimed = exporter.must_claim()

    def refusal(**changed: str | int) -> str:
        forged = ClaimedExport(cell="demo")
        forged.lease.CopyFrom(claimed.lease)
        for field, value in changed.items():
            setattr(forged.lease, field, value)
        with pytest.raises(grpc.RpcError) as error:
            exporter.report(forged, 1, 50)
        return refused(error)[1]

    forgeries: list[dict[str, str | int]] = [
        {"epoch": 2**60},
        {"epoch": 0},
        {"name": "../../x"},
        {"name": ""},
        {"request_key": "a b"},
        {"export_id": "short"},
    ]
    with store.client() as client:
        client.flushall()
    eventually(lambda: not store.is_settled(), within=2)
    for forgery in forgeries:
        assert refusal(**forgery) in ("EXPORT_NOT_FOUND", "LEASE_LOST", "LEASE_NOT_HELD")
    with living(exporter, claimed, 10):
        eventually(store.is_settled)
    exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)
    with unchanged(unit):
        assert refusal(export_id="0" * 32) == "EXPORT_NOT_FOUND"


@pytest.mark.fault("F34")
def test_a_replica_that_lacks_the_last_writes_takes_over_and_nothing_lies(
    unit: Unit, store: RedisServer, exporter: HandExporter, tmp_path: Path
) -> None:
    unit.add_cell("other")
    replica = RedisServer(tmp_path / "replica", *DURABLE, "--replicaof", "127.0.0.1", str(store.port))

    with ExitStack() as stack:
        stack.callback(replica.stop)
        eventually(lambda: replicated(store, replica))
        unit.begin("first")
        first = exporter.must_claim()
        exporter.report(first, 1, 30)
        assert replicated(store, replica)
        with replica.client() as client:
            client.replicaof("127.0.0.1", "1")
        # The replica is cut off, and misses these writes: more progress of the first export, and the start and claim of
        # a second.
        exporter.report(first, 2, 60)
        unit.begin("second", cell="other")
        second = exporter.must_claim()
        exporter.report(second, 1, 10)
        before, other = unit.get(), unit.get("other")
        oracle = stack.enter_context(Oracle(unit, cells=("demo", "other"), exporter=False, may_step_back=True))
        promote(store, replica)

        with living(exporter, first, 31), living(exporter, second, 10):
            eventually(lambda: answers(unit) and unit.http(path="/other/__export").status == 200)
            after, restored = unit.get(), unit.get("other")
            assert after.exportation.start_time == before.exportation.start_time
            assert after.exportation.progress_percent in (30, 31)
            assert restored.exportation == other.exportation
            assert after.revision > before.revision
            assert restored.revision > other.revision
            eventually(store.is_settled)
        for answers_of in oracle.history.values():
            assert all(seen.status.state == CellExport.STATE_EXPORTING for seen in answers_of)
        for claimed in (first, second):
            exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)


def replicated(store: RedisServer, replica: RedisServer) -> bool:
    with store.client() as primary, replica.client() as client:
        if primary.info("replication").get("connected_slaves") != 1:
            return False
        return bool(primary.wait(1, 1000) == 1 and client.dbsize() == primary.dbsize())


def promote(store: RedisServer, replica: RedisServer) -> None:
    """Start Redis again at the primary's address, but with the replica's data."""
    store.kill()
    replica.stop()
    store.directory = replica.directory
    store.restart()


@pytest.mark.fault("F40")
def test_a_redis_paused_for_longer_than_the_lease_costs_no_living_exporter_its_lease(
    unit: Unit, store: RedisServer, exporter: HandExporter
) -> None:
    with Oracle(unit, exporter=False):
        unit.begin("paused")
        claimed = exporter.must_claim()
        exporter.report(claimed, 1, 10)
        with store.paused():
            threading.Event().wait(unit.lease_seconds + 2)
        with living(exporter, claimed, 20):
            eventually(lambda: answers(unit), within=3)
            threading.Event().wait(unit.lease_seconds)
            assert unit.get().exportation.progress_percent == 20
        assert exporter.claim(wait=0) is None
        exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)


@pytest.mark.fault("F49")
def test_nothing_in_redis_has_a_lifetime_that_its_clock_could_end(
    unit: Unit, store: RedisServer, exporter: HandExporter
) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    exporter.report(claimed, 1, 10)
    with store.client() as client:
        lifetimes = {key: client.ttl(key) for key in client.keys("*")}
    assert len(lifetimes) == 3
    assert set(lifetimes.values()) == {-1}


# Faults that make Redis refuse commands. Each function below causes one, and returns a function that mends it.


def no_replicas(store: RedisServer) -> Callable[[], None]:
    with store.client() as client:
        client.config_set("min-replicas-to-write", 1)

    def mend() -> None:
        with store.client() as client:
            client.config_set("min-replicas-to-write", 0)

    return mend


def full(store: RedisServer) -> Callable[[], None]:
    with store.client() as client:
        client.config_set("maxmemory", 1)

    def mend() -> None:
        with store.client() as client:
            client.config_set("maxmemory", 0)

    return mend


def wrong_password(store: RedisServer) -> Callable[[], None]:
    with store.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "on", "resetpass", ">canary-password")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")

    def mend() -> None:
        with store.client(password="canary-password") as client:
            client.execute_command("ACL", "SETUSER", "default", "on", "nopass")

    return mend


def busy(store: RedisServer) -> Callable[[], None]:
    with store.client() as client:
        client.config_set("busy-reply-threshold", 50)
    hog = store.client()
    thread = threading.Thread(target=_run_for_ever, args=(hog,))
    thread.start()
    eventually(lambda: _is_busy(store))

    def mend() -> None:
        with store.client() as client:
            client.script_kill()
        thread.join(10)
        hog.close()

    return mend


def _run_for_ever(client: "redis.Redis") -> None:
    with pytest.raises((redis.ResponseError, redis.TimeoutError)):
        client.eval("while true do end", 0)


def _is_busy(store: RedisServer) -> bool:
    with store.client() as client:
        try:
            client.get("x")
        except redis.ResponseError as error:
            return "BUSY" in str(error)
    return False


@pytest.mark.fault("F37")
@pytest.mark.parametrize(
    ("harm", "reads", "code"),
    [
        (no_replicas, True, "PR503-SV-0003"),
        (full, True, "PR503-SV-0005"),
        (wrong_password, False, "PR503-SV-0003"),
        (busy, False, "PR503-SV-0003"),
    ],
)
def test_a_refusal_by_redis_has_its_code_and_ends_with_its_cause(
    unit: Unit,
    store: RedisServer,
    exporter: HandExporter,
    harm: Callable[[RedisServer], Callable[[], None]],
    reads: bool,
    code: str,
) -> None:
    unit.add_cell("other")
    unit.begin("kept")
    claimed = exporter.must_claim()

    with Oracle(unit, exporter=False):
        mend = harm(store)
        try:
            answer = unit.http()
            assert answer.status == (200 if reads else 503)
            assert reads or answer.code == "PR503-SV-0003"
            started = unit.http("POST", "/other/__export")
            assert (started.status, started.code) == (503, code)
            assert not answered_or_full(exporter, claimed)
        finally:
            mend()
        with living(exporter, claimed, 50):
            eventually(lambda: answers(unit) and unit.get().exportation.progress_percent == 50)
        exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)

        assert unit.status("other") == {"status": "ready"}
    log = unit.programs[0].log.read_text()

    assert "canary-password" not in log
    assert "Traceback" not in log
    assert log.count("store unavailable") <= 2


def answered_or_full(exporter: HandExporter, claimed: ClaimedExport) -> bool:
    try:
        return answered(exporter.report, claimed, 1, 10)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017 - one of two ways to refuse
        return False


@pytest.mark.fault("F37")
def test_a_redis_that_can_not_save_is_unavailable_until_it_takes_writes(unit: Unit, tmp_path: Path) -> None:
    place = tmp_path / "unsaved"
    # This Redis saves its data a second after each write. Its directory is removed below, so every save fails.
    unsaved = RedisServer(place, "--save", "1 1")
    use(unit, unsaved)
    unit.programs[0].kill()
    (place / "redis.log").unlink()
    place.rmdir()
    unit.start_server()

    try:
        eventually(lambda: _can_not_save(unsaved))
        unit.add_cell("other")
        assert unit.http("POST", "/other/__export").code == "PR503-SV-0003"
        with unsaved.client() as client:
            client.config_set("save", "")
            client.config_set("stop-writes-on-bgsave-error", "no")
        eventually(lambda: unit.http("POST", "/other/__export").status in (202, 409))
    finally:
        unsaved.stop()


def _can_not_save(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.info("persistence")["rdb_last_bgsave_status"] == "err")


@pytest.mark.fault("F37")
def test_a_redis_that_still_loads_is_waited_for(unit: Unit, store: RedisServer) -> None:
    with store.client() as client:
        for number in range(200):
            client.set(f"other:{number}", "x")
    store.kill()
    options = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    slow = RedisServer(store.directory, *DURABLE, *options, port=store.port)
    unit.programs[0].kill()
    server = unit.start_server()

    try:
        eventually(lambda: answers(unit), within=30)
        assert server.process.poll() is None
    finally:
        slow.stop()


def test_a_redis_that_evicts_is_refused_at_the_start_and_found_out_later(unit: Unit, store: RedisServer) -> None:
    with store.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    second = unit.start("server", CELLEXPORT_GRPC_LISTEN=f"127.0.0.1:{free_port()}")
    assert second.process.wait(60) == 2
    assert second.log.read_text().count("\n") == 1
    assert "maxmemory-policy is allkeys-lru, which evicts keys: set it to noeviction" in second.log.read_text()
    unit.programs[0].wait_for_log("store unavailable")
    must_be_away(unit)
    with store.client() as client:
        client.config_set("maxmemory-policy", "noeviction")

    eventually(lambda: answers(unit))


def test_a_redis_that_is_not_there_is_waited_for(unit: Unit, store: RedisServer) -> None:
    store.kill()
    unit.programs[0].kill()
    server = unit.start_server()
    must_be_away(unit)
    store.restart()
    eventually(lambda: answers(unit))
    assert server.process.poll() is None


def test_a_cell_whose_record_was_evicted_is_never_ready(unit: Unit, store: RedisServer, exporter: HandExporter) -> None:
    unit.begin()
    exporter.must_claim()
    with store.client() as client:
        client.delete("export:4:demo")
    must_be_away(unit)
