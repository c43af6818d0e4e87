"""The tokens that may export: the master token, and JWTs with the exporters' scope. A lease belongs to its claimer."""

import time
from functools import partial
from pathlib import Path

import grpc
import pytest

from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from injection import slow_to_read
from tokens import ACCESS_FILE, SECRET, Issuer, fields, local, older, resident
from unit import TOKEN, UNIT_URL, HandExporter, Unit, eventually, needs

REPORT = "export-report"


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "issuer", "ES256").add_key("one")


@pytest.fixture
def mesh(unit: Unit, issuer: Issuer) -> Unit:
    """Return a unit whose server accepts every kind of token: the master token, local tokens and JWTs."""
    (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
    unit.lease_seconds = 5
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET, **issuer.settings)
    return unit


def renew(file: Path, issuer: Issuer, seconds: int) -> None:
    """Replace the token file by one whose JWT is accepted for `seconds` more, the leeway of 30 seconds included."""
    fresh = file.with_suffix(".new")
    fresh.write_text(issuer.token(aud=UNIT_URL, scope=REPORT, exp=int(time.time()) - 30 + seconds) + "\n")
    fresh.rename(file)


def reason(error: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    info = client.error_info(error.value)
    assert info is not None
    return str(info.reason)


def test_a_jwt_with_the_scope_claims_reports_and_finishes(mesh: Unit, issuer: Issuer) -> None:
    mesh.begin()
    with mesh.channel() as channel:
        # The claim, the report and the end below come with three different tokens of the same caller.
        claimed = HandExporter(channel, issuer.token(aud=UNIT_URL, scope=REPORT)).must_claim()
        # A report needs only a token for the cell, like this one. The claim needed a token for the whole unit.
        HandExporter(channel, issuer.token(scope=f"x {REPORT}", jti="2")).report(claimed, 1, 50)
        assert mesh.get().exportation.progress_percent == 50
        last = HandExporter(channel, issuer.token(aud=UNIT_URL, scope=f"{REPORT} root"))
        ended = last.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)

    assert ended.state == CellExport.STATE_READY


def test_nobody_else_may(mesh: Unit, issuer: Issuer) -> None:
    mesh.begin()
    refused = {
        issuer.token(aud=UNIT_URL): "SCOPE_INSUFFICIENT",
        issuer.token(aud=UNIT_URL, scope=None): "SCOPE_INSUFFICIENT",
        # This token is for one cell, and a claim needs a token for the whole unit.
        issuer.token(scope=REPORT): "TOKEN_INVALID",
        resident(): "TOKEN_INVALID",
        local("AU~", fields("6", issuer=UNIT_URL, scope=REPORT), issuer=UNIT_URL): "PRIVILEGE_LACKING",
    }

    with mesh.channel() as channel:
        for token, expected in refused.items():
            with pytest.raises(grpc.RpcError) as raised:
                HandExporter(channel, token).claim(wait=0)
            assert reason(raised) == expected
        claimed = HandExporter(channel).must_claim()
        refused = {
            issuer.token(): "SCOPE_INSUFFICIENT",
            issuer.token(aud=f"{UNIT_URL}other/", scope=REPORT): "TOKEN_INVALID",
            # No right in the cell's access list allows reports.
            resident(scope=f"root {REPORT}"): "PRIVILEGE_LACKING",
            resident("gone"): "PRIVILEGE_LACKING",
            older("AA~"): "PRIVILEGE_LACKING",
        }
        for token, expected in refused.items():
            exporter = HandExporter(channel, token)
            for act in (
                partial(exporter.report, claimed, 1, 1),
                partial(exporter.finish, claimed, Outcome.RESULT_SUCCEEDED),
            ):
                with pytest.raises(grpc.RpcError) as raised:
                    act()
                assert reason(raised) == expected
    status = mesh.get()

    assert (status.state, status.exportation.progress_percent) == (CellExport.STATE_EXPORTING, 0)


def test_a_lease_is_good_in_its_takers_hands_only(mesh: Unit, issuer: Issuer) -> None:
    mesh.begin()
    with mesh.channel() as channel:
        taker = HandExporter(channel, issuer.token(aud=UNIT_URL, scope=REPORT))
        claimed = taker.must_claim()
        others = [TOKEN, *(issuer.token(aud=UNIT_URL, scope=REPORT, **who) for who in ({"sub": "x"}, {"sub": None}))]

        for token in others:
            with pytest.raises(grpc.RpcError) as raised:
                HandExporter(channel, token).report(claimed, 1, 1)
            assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert reason(raised) == "LEASE_NOT_HELD"
            with pytest.raises(grpc.RpcError) as raised:
                HandExporter(channel, token).finish(claimed, Outcome.RESULT_SUCCEEDED)
            assert reason(raised) == "LEASE_NOT_HELD"
        taker.report(claimed, 1, 1)


def test_a_claim_is_repeated_by_its_taker_only(mesh: Unit, issuer: Issuer) -> None:
    mesh.begin()
    with mesh.channel() as channel:
        one = HandExporter(channel, issuer.token(aud=UNIT_URL, scope=REPORT))
        first = one.claim(request_id="a" * 32)
        assert first is not None
        assert HandExporter(channel).claim(wait=0, request_id="a" * 32) is None
        again = one.claim(wait=0, request_id="a" * 32)
        assert again is not None
        assert again.lease.export_id == first.lease.export_id


def test_a_long_call_ends_when_its_token_does(mesh: Unit, issuer: Issuer) -> None:
    # The token has expired 27 seconds ago. The server accepts it for 3 seconds more, because its leeway is 30 seconds.
    exp = int(time.time()) - 27
    with mesh.channel() as channel:
        exporter = HandExporter(channel, issuer.token(aud=UNIT_URL, scope=REPORT, exp=exp))
        started = steady()
        with pytest.raises(grpc.RpcError) as raised:
            exporter.claim(wait=20)
        assert reason(raised) == "TOKEN_EXPIRED"
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert steady() - started < 6
        # The claim that ended with its token must not take the next export: another claim gets that.
        mesh.begin()
        assert HandExporter(channel).claim() is not None


def test_the_exporter_goes_on_with_the_token_that_is_in_its_file_by_then(mesh: Unit, issuer: Issuer) -> None:
    file = mesh.directory.parent / "token"
    renew(file, issuer, 3)
    more = {"CELLEXPORT_MASTER_TOKEN": "", "CELLEXPORT_EXPORTER_TOKEN_FILE": str(file)}
    exporter = mesh.start_exporter(**more)
    exporter.wait_for_log("claims fail; retrying")
    assert exporter.process.poll() is None
    renew(file, issuer, 60)
    exporter.wait_for_log("claims succeed again")
    mesh.begin()

    assert mesh.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED


def test_a_token_of_the_environment_that_has_ended_ends_the_exporter(mesh: Unit, issuer: Issuer) -> None:
    token = issuer.token(aud=UNIT_URL, scope=REPORT, exp=1)
    exporter = mesh.start("server.exporter", CELLEXPORT_EXPORTER_TOKEN=token)
    assert exporter.process.wait(60) == 2
    assert "the server refuses the token" in exporter.log.read_text()


@needs("strace")
@pytest.mark.timeout(150)
def test_a_token_that_ends_in_mid_export_costs_nothing_if_another_follows(mesh: Unit, issuer: Issuer) -> None:
    file = mesh.directory.parent / "token"
    slow = slow_to_read(mesh.add_large_file(30))
    renew(file, issuer, 300)
    exporter = mesh.start_exporter(*slow, CELLEXPORT_MASTER_TOKEN="", CELLEXPORT_EXPORTER_TOKEN_FILE=str(file))
    mesh.begin()
    eventually(lambda: mesh.get().exportation.bytes_done > 0)
    renew(file, issuer, 1)
    exporter.wait_for_log("progress reports fail; retrying")
    # Leave half a token in the token file, as if a program were writing the file in place. The export must go on.
    file.write_text(file.read_text()[:100])
    assert mesh.get().state == CellExport.STATE_EXPORTING
    renew(file, issuer, 60)
    exporter.wait_for_log("progress reports succeed again")
    assert mesh.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED

    eventually(lambda: (mesh.snapshots / "demo").exists())
