"""WatchCellExport: it sends the current status, then each change, while the caller has the right to see them."""

import asyncio
import itertools
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from pathlib import Path

import grpc
import pytest

from canary import steady
from cellexport import client, watching
from cellexport.v1.cell_export_pb2 import CellExport, Outcome, WatchCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from redis_server import RedisServer, running
from server.auth import Identity
from server.exports.clock import now_ms
from server.exports.model import Caller
from server.exports.repository import Repository
from server.exports.watches import Watches
from server.refusals import Refusal, Refused
from server.rpc.stream_limit import StreamLimit
from server.stores.redis.place import RedisPlace
from server.stores.redis.store import RedisStore
from tokens import ACCESS_FILE, SECRET, resident
from unit import TOKEN, HandExporter, Program, Unit, eventually, free_port, needs, refused
from watchers import Watch, following


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs("redis-server"))])
def watched(request: pytest.FixtureRequest, unit: Unit, tmp_path: Path) -> Iterator[int]:
    """Yield the gRPC port of the server to watch.

    With SQLite it is the unit's only server; with Redis it is a second server on the same store.
    """
    if request.param == "sqlite":
        unit.start_server()
        yield unit.grpc_port
        return
    with running(tmp_path / "redis") as store:
        unit.settings["CELLEXPORT_STORE"] = store.url
        unit.start_server()
        port = free_port()
        unit.start_server(CELLEXPORT_GRPC_LISTEN=f"127.0.0.1:{port}")
        eventually(store.is_settled)
        yield port


def test_the_current_status_comes_first_and_then_each_change(unit: Unit, watched: int) -> None:
    with unit.channel(watched) as channel, unit.channel() as other:
        watch, exporter = Watch(channel), HandExporter(other)
        first = watch.next()
        assert first.cell_export.state == CellExport.STATE_READY
        assert first.revision == first.cell_export.revision

        started = unit.begin("one")
        assert watch.next().cell_export == started

        claimed = exporter.must_claim()
        assert watch.next().cell_export.exportation.progress_percent == 0
        exporter.report(claimed, 1, 40)
        assert watch.next().cell_export.exportation.progress_percent == 40

        ended = exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)
        assert watch.next().cell_export == ended

        # A watch that begins after a change was acknowledged must send the changed status first, on any server.
        assert Watch(channel).next().cell_export == ended


def test_a_watch_resumes_after_a_revision_without_gap_or_repetition(unit: Unit, watched: int) -> None:
    with unit.channel(watched) as channel:
        before = unit.get()
        resumed = Watch(channel, after_revision=before.revision)
        unchanged = resumed.next()
        assert not unchanged.HasField("cell_export")
        assert unchanged.revision == before.revision

        started = unit.begin()
        assert resumed.next().cell_export == started
        assert Watch(channel, after_revision=before.revision).next().cell_export == started
        assert not Watch(channel, after_revision=started.revision).next().HasField("cell_export")


@pytest.mark.parametrize("ahead", [1, 2**62, -(2**62)])
def test_a_revision_that_the_cell_has_never_had_is_refused(shared_unit: Unit, ahead: int) -> None:
    with shared_unit.channel() as channel:
        error = Watch(channel, after_revision=min(shared_unit.get().revision + ahead, 2**63 - 1)).end()
    assert error is not None
    info = client.error_info(error)
    assert info is not None
    assert (error.code().name, info.reason) == ("OUT_OF_RANGE", "REVISION_UNKNOWN")
    assert info.metadata["personium_code"] == "PR400-CX-0005"


def test_until_ready_ends_with_ok_after_it_has_said_so(unit: Unit) -> None:
    unit.start_server()
    with unit.channel() as channel:
        already = Watch(channel, until_ready=True)
        assert already.next().cell_export.state == CellExport.STATE_READY
        assert already.end() is None

        unit.begin()
        watch, exporter = Watch(channel, until_ready=True), HandExporter(channel)
        assert watch.next().cell_export.state == CellExport.STATE_EXPORTING

        ended = exporter.finish(exporter.must_claim(), Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)
        *_, last = watch.call
        assert last.cell_export == ended
        assert watch.call.code() is grpc.StatusCode.OK

        # A caller that lost the connection just before the OK, and resumes after the last revision, must get OK too.
        again = Watch(channel, until_ready=True, after_revision=ended.revision)
        assert not again.next().HasField("cell_export")
        assert again.end() is None


def test_while_nothing_changes_it_says_so(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_WATCH_KEEPALIVE_SECONDS="1")
    with unit.channel() as channel:
        watch = Watch(channel)
        first = watch.next()

        began, began_steady = time.monotonic(), steady()
        for _ in range(2):
            message = watch.next()
            assert (message.HasField("cell_export"), message.revision) == (False, first.revision)

        assert time.monotonic() - began >= 1.6
        assert steady() - began_steady < 4


def test_a_watch_ends_with_its_callers_token(unit: Unit) -> None:
    (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET)
    with unit.channel() as channel:
        watch = Watch(channel, token=resident(lifespan="2000"))
        assert watch.next().cell_export.state == CellExport.STATE_READY
        assert reason(watch) == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


def test_a_watch_that_goes_on_outlives_tokens_that_are_exchanged_and_no_other(unit: Unit) -> None:
    (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET, CELLEXPORT_WATCH_KEEPALIVE_SECONDS="1")
    tokens = iter([resident(lifespan="2000"), resident(), resident(lifespan="1")])
    with unit.channel() as channel:
        messages = watching.watch(channel, "demo", lambda: client.bearer(next(tokens)))
        revision = next(messages).revision

        # Read keep-alives until the first token has expired, and `watch` has asked for the second.
        while len(list(copy(tokens))) > 1:
            message = next(messages)
            assert (message.HasField("cell_export"), message.revision) == (False, revision)

        messages = watching.watch(channel, "demo", lambda: client.bearer(next(tokens)))
        with pytest.raises(grpc.RpcError) as raised:
            next(messages)
        assert refused(raised) == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


def test_nothing_is_sent_to_a_caller_whose_rights_were_taken_away(unit: Unit) -> None:
    access = unit.directory / "cells/demo/cell.toml"
    access.write_text(ACCESS_FILE)
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET, CELLEXPORT_WATCH_KEEPALIVE_SECONDS="1")
    with unit.channel() as channel:
        watch = Watch(channel, token=resident())
        watch.next()

        access.write_text(ACCESS_FILE.replace('"root"', '"auth-read"'))
        assert reason(watch) == ("PERMISSION_DENIED", "PRIVILEGE_LACKING")

        masters = Watch(channel)
        masters.next()
        shutil.rmtree(access.parent)
        assert reason(masters) == ("NOT_FOUND", "CELL_NOT_FOUND")


def test_the_checks_are_those_of_any_method(shared_unit: Unit) -> None:
    with shared_unit.channel() as channel:
        assert reason(Watch(channel, "nowhere", token="wrong")) == ("NOT_FOUND", "CELL_NOT_FOUND")
        assert reason(Watch(channel, token="wrong")) == ("UNAUTHENTICATED", "TOKEN_INVALID")


def test_a_watch_that_is_opened_is_an_event_and_its_messages_are_none(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_WATCH_KEEPALIVE_SECONDS="1")
    log = unit.directory / "log" / "event.log"

    with unit.channel() as channel:
        stub, metadata = CellExportServiceStub(channel), client.bearer(TOKEN)
        key = (*metadata, ("x-personium-requestkey", "my-watch"))
        call = stub.WatchCellExport(WatchCellExportRequest(cell="demo"), metadata=key, timeout=60)
        next(call)
        next(call)
        unit.begin()
        next(call)
        call.cancel()

    lines = eventually(lambda: [line for line in log.read_text().splitlines() if "my-watch" in line] or None)
    assert [line.split(",", 2)[2] for line in lines] == [
        '"my-watch","false",null,null,"cell.export.status","personium-localcell:/__export","ready"'
    ]


def reason(watch: Watch) -> tuple[str, str]:
    """Read a watch to its end. Return the status and the reason with which the server's code, not gRPC, ended it."""
    error = watch.end()
    assert error is not None
    info = client.error_info(error)
    assert info is not None, error
    return error.code().name, info.reason


# Restarts and unavailable stores.


@pytest.mark.fault("F08")
def test_a_server_that_ends_closes_watches_and_a_resumed_watch_misses_nothing(unit: Unit) -> None:
    server = unit.start_server()
    with unit.channel() as channel, following(unit) as follower:
        watches = [Watch(channel) for _ in range(20)]
        assert {watch.next().cell_export.state for watch in watches} == {CellExport.STATE_READY}
        follower.arrived.get(timeout=60)

        began = steady()
        server.signal(signal.SIGTERM)
        for watch in watches:
            error = watch.end()
            assert error is not None
            info = client.error_info(error)
            assert info is not None
            assert (error.code().name, info.reason) == ("UNAVAILABLE", "SERVER_SHUTDOWN")
            assert 1 <= client.retry_seconds(error) <= 2
        assert server.process.wait(60) == 0
        assert steady() - began < 5

        unit.start_server()
        started = eventually(lambda: begun(unit))
        assert eventually(lambda: follower.messages[-1].cell_export == started)

    follower.judge()
    assert [status.cell_export.state for status in follower.statuses()] == [
        CellExport.STATE_READY,
        CellExport.STATE_EXPORTING,
    ]


@pytest.mark.fault("F28")
def test_a_connection_that_has_become_old_takes_no_message_of_a_watch_with_it(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_CONNECTION_AGE_SECONDS="1", CELLEXPORT_CONNECTION_GRACE_SECONDS="1")
    with following(unit) as follower, unit.channel() as channel:
        follower.arrived.get(timeout=60)
        unit.begin()
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()

        # The server closes each connection after two seconds at most (age and grace), so in five seconds the watch has
        # to change its connection.
        until = time.monotonic() + 5
        for number in itertools.count(1):
            exporter.report(claimed, number, number, 1_000_000)
            if time.monotonic() > until:
                break
            newest = unit.get()
            assert eventually(lambda n=newest: follower.statuses()[-1].cell_export == n)  # type: ignore[misc]

        exporter.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)
        assert eventually(lambda: follower.statuses()[-1].cell_export.state == CellExport.STATE_READY)
    follower.judge()


def begun(unit: Unit) -> CellExport | None:
    """Start an export; return None while the server is unavailable."""
    try:
        return unit.begin()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None


def begin_a_long_export(unit: Unit) -> Program:
    """Start a server, an exporter and an export that outlasts any test. Return the exporter."""
    unit.start_server()
    exporter = unit.start_exporter()
    unit.add_large_file(50 * 1024)
    unit.begin()
    return exporter


@pytest.mark.fault("F02")
def test_a_killed_exporter_is_one_change_at_the_end(unit: Unit) -> None:
    exporter = begin_a_long_export(unit)
    with unit.channel() as channel:
        watch = Watch(channel, until_ready=True)
        eventually(lambda: watch.next_status().cell_export.exportation.bytes_done > 0)
        exporter.kill()
        *_, last = watch.call
    outcome = last.cell_export.last_outcome
    assert (outcome.result, outcome.reason) == (Outcome.RESULT_INTERRUPTED, Outcome.REASON_LEASE_EXPIRED)


@pytest.mark.fault("F09")
def test_an_exporter_that_gets_sigterm_is_one_change_at_the_end(unit: Unit) -> None:
    exporter = begin_a_long_export(unit)
    with unit.channel() as channel:
        watch = Watch(channel, until_ready=True)
        eventually(lambda: watch.next_status().cell_export.exportation.bytes_done > 0)

        began = steady()
        assert exporter.terminate() == 0
        *_, last = watch.call
        assert steady() - began < 2

    outcome = last.cell_export.last_outcome
    assert (outcome.result, outcome.reason) == (Outcome.RESULT_INTERRUPTED, Outcome.REASON_SHUTDOWN)


def refused_for_want_of_the_store(unit: Unit) -> bool:
    with pytest.raises(grpc.RpcError) as raised:
        unit.get()
    return refused(raised) == ("UNAVAILABLE", "STORE_UNAVAILABLE")


@needs("redis-server")
@pytest.mark.fault("F38")
def test_a_store_that_was_away_for_a_moment_ends_no_watch_and_hides_no_change(unit: Unit, tmp_path: Path) -> None:
    with running(tmp_path / "redis") as store:
        unit.settings["CELLEXPORT_STORE"] = store.url
        unit.start_server()
        eventually(store.is_settled)
        with unit.channel() as channel:
            watch = Watch(channel)
            watch.next()

            with store.paused():
                assert refused_for_want_of_the_store(unit)
            started = eventually(lambda: begun(unit))
            assert watch.next().cell_export == started

            # Redis cuts the server's subscription, so the notification of the next change may be lost. The watch must
            # send the change all the same.
            store.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            cancelled = unit.cancel()
            assert eventually(lambda: watch.next_status().cell_export == cancelled)


@needs("redis-server")
def test_a_keepalive_is_sent_only_if_the_store_confirms_the_status(unit: Unit, tmp_path: Path) -> None:
    with running(tmp_path / "redis") as store:
        unit.settings["CELLEXPORT_STORE"] = store.url
        unit.start_server(CELLEXPORT_WATCH_KEEPALIVE_SECONDS="2")
        eventually(store.is_settled)

        with unit.channel() as channel:
            watch = Watch(channel)
            watch.next()

            with store.paused():
                assert reason(watch) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
                assert reason(Watch(channel)) == ("UNAVAILABLE", "STORE_UNAVAILABLE")


@pytest.mark.process
@needs("redis-server")
@pytest.mark.fault("F31")
def test_a_store_that_hangs_is_reported_in_time_however_many_cells_are_watched(tmp_path: Path) -> None:
    async def main(store: RedisServer) -> None:
        redis = await RedisStore.open(RedisPlace.parse("CELLEXPORT_STORE", store.url), now_ms)
        watches = Watches(redis, Repository(redis, now_ms), keepalive_seconds=30, patience_seconds=1)
        with store.paused() as began:
            firsts = [anext(watches.watch(f"cell{number}", 0, until_ready=False)) for number in range(100)]
            refusals = await asyncio.gather(*firsts, return_exceptions=True)
            # Redis is paused, so each of the 100 first reads takes a second until it fails. If only eight cells were
            # read at a time, that would take 13 seconds.
            assert steady() - began < 6
        assert {getattr(refusal, "refusal", None) for refusal in refusals} == {Refusal.STORE_UNAVAILABLE}
        await redis.close()

    with running(tmp_path / "redis") as store:
        asyncio.run(main(store))


# Limits.


@pytest.mark.fault("F23")
def test_one_caller_may_not_have_more_watches_than_its_share(unit: Unit) -> None:
    (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET)
    target = f"127.0.0.1:{unit.grpc_port}"

    async def main() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = CellExportServiceStub(channel)

            async def open_one(token: str) -> grpc.aio.UnaryStreamCall[WatchCellExportRequest, object]:
                call = stub.WatchCellExport(WatchCellExportRequest(cell="demo"), metadata=client.bearer(token))
                await call.read()
                return call  # type: ignore[return-value]

            token, calls = resident(), []
            for _ in range(10):
                calls += await asyncio.gather(*(open_one(token) for _ in range(100)))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await open_one(token)
            info = client.error_info(raised.value)
            assert info is not None
            assert (raised.value.code().name, info.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHES")
            # The limit is one caller's: callers with the unit's master token can still open watches.
            calls += [await open_one(TOKEN) for _ in range(5)]
            # The caller may open another watch once the server has noticed the end of the cancelled one.
            calls[0].cancel()
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await open_one(token)
                    break

    asyncio.run(main())


@pytest.mark.fault("F23")
def test_all_together_have_no_more_than_there_are() -> None:
    limit = StreamLimit(total=2, per_caller=1)
    own = Identity(Caller(subject="a"), "", None, for_unit=False)

    with limit.room(), limit.room_for(own), limit.room():
        with pytest.raises(Refused), limit.room():
            pass
        with pytest.raises(Refused), limit.room_for(own):
            pass
        with limit.room_for(Identity(Caller(), "master", None, for_unit=True)):
            assert limit.open == 2
    assert limit.open == 0


@pytest.mark.fault("F24")
def test_a_slow_subscriber_gets_the_newest_status_and_costs_little(unit: Unit) -> None:
    server = unit.start_server()
    options = (("grpc.http2.lookahead_bytes", 16384), ("grpc.http2.bdp_probe", 0))
    with unit.channel() as channel, grpc.insecure_channel(f"127.0.0.1:{unit.grpc_port}", options) as slow:
        unit.begin()
        exporter, watch = HandExporter(channel), Watch(slow)
        watch.next()
        claimed = exporter.must_claim()

        before = server.peak_memory()
        for number in range(1, 3001):
            exporter.report(claimed, number, number, 10_000)

        newest = unit.get()
        revisions = [watch.next().revision]
        while revisions[-1] < newest.revision:
            revisions.append(watch.next().revision)

        assert revisions == sorted(set(revisions))
        # The server must replace unsent statuses by newer ones, so the slow subscriber gets far fewer than 3000, and
        # the server's memory for unsent bytes is bounded.
        assert len(revisions) < 1500
        assert server.peak_memory() - before < 20 * 1024**2
