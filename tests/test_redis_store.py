"""The store in Redis: its own promises. test_store_contract.py has the promises of every store."""

import asyncio
import datetime
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from canary import steady
from cellexport.environment import SettingError
from cellexport.store.v1 import cell_record_pb2
from records import following, full
from redis_server import DURABLE, RedisServer, running
from server.exports.clock import now_ms
from server.exports.model import Trust
from server.refusals import Refused
from server.stores.redis.place import RedisPlace
from server.stores.redis.store import RedisStore
from unit import ROOT, HandExporter, Unit, accepts, eventually, free_port, needs

pytestmark = [needs("redis-server"), pytest.mark.process]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", *DURABLE)
    yield server
    server.stop()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(RedisPlace.parse("STORE", url), now_ms)
    try:
        yield store
    finally:
        await store.close()


async def settled(store: RedisStore) -> None:
    doubt = await store.doubt()
    if doubt is not None:
        await store.settle(doubt)


def test_a_redis_takes_the_documented_configuration(tmp_path: Path) -> None:
    [block] = re.findall(
        r"^```\n(.*?maxmemory-policy.*?)^```", (ROOT / "docs" / "redis.md").read_text(), re.MULTILINE | re.DOTALL
    )
    config = tmp_path / "redis.conf"
    config.write_text(block)
    with running(tmp_path / "redis", "--include", str(config)) as server, server.client() as client:
        assert client.config_get("min-replicas-*") == {"min-replicas-to-write": "1", "min-replicas-max-lag": "10"}


@pytest.mark.fault("F38")
def test_a_subscriber_sees_the_last_change_although_messages_were_lost(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server.url) as writer, opened(server.url) as reader:
            await settled(writer)
            with reader.changes("demo") as changed, server.client() as client:
                record = following(await writer.read("demo"))
                for number in range(100):
                    if number % 10 == 0:
                        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                    assert record.export is not None
                    record = replace(record, export=replace(record.export, percent=number % 99))
                    assert await writer.replace(record)
                    record = replace(record, revision=record.revision + 1)
                last, written = record.revision - 1, steady()
                while (await reader.read("demo")).revision < last:
                    changed.clear()
                    await asyncio.wait_for(changed.wait(), 60)
                assert steady() - written < 2
                # The reader already has the last change. A lost connection must be followed by a notification all the
                # same, for subscribers that read just before that change.
                changed.clear()
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                killed = steady()
                await asyncio.wait_for(changed.wait(), 60)
                assert steady() - killed < 2

    asyncio.run(main())


def test_of_what_is_restored_after_a_loss_every_revision_is_above_the_lost_ones(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server.url) as store:
            await settled(store)
            first = following(await store.read("demo"))
            assert await store.replace(first)
            with server.client() as client:
                client.flushall()
            forgotten = await store.read("demo")
            assert (forgotten.trust, forgotten.export) == (Trust.DOUBTFUL, None)
            assert forgotten.revision > first.revision + 10_000
            assert await store.replace(full(forgotten))
            assert (await store.read("demo")).trust is Trust.RESTORED
            assert (await store.read("other")).trust is Trust.DOUBTFUL
            await settled(store)
            assert (await store.read("demo")).trust is Trust.SURE
            assert (await store.read("other")).trust is Trust.SURE

    asyncio.run(main())


@pytest.mark.parametrize("checks", [True, False])
def test_a_doubt_that_is_over_is_not_the_next_one(server: RedisServer, checks: bool) -> None:
    async def main() -> None:
        async with opened(server.url) as store:
            doubt = await store.doubt()
            assert doubt is not None
            with server.client() as client:
                client.flushall()
            if checks:
                await store.check()
            await store.settle(doubt)
            assert await store.doubt() not in (None, doubt)
            assert (await store.read("demo")).trust is Trust.DOUBTFUL

    asyncio.run(main())


def test_a_message_that_is_none_of_ours_deafens_nobody(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server.url) as store:
            await settled(store)
            with store.changes("demo") as changed, server.client() as client:
                await asyncio.sleep(0.3)
                client.publish("export:changed", b"\xff\xfe")
                await asyncio.sleep(0.1)
                changed.clear()
                assert await store.replace(following(await store.read("demo")))
                await asyncio.wait_for(changed.wait(), 2)

    asyncio.run(main())


def test_one_damaged_record_costs_the_others_nothing(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server.url) as store:
            await settled(store)
            for cell in ("demo", "other", "third"):
                assert await store.replace(following(await store.read(cell)))
            with server.client() as client:
                client.hset("export:4:demo", "record", b"\xff")
                client.delete("export:5:other")
            assert [record.cell for record in await store.underway()] == ["third"]
            with pytest.raises(Refused, match="DATA_DAMAGED"):
                await store.read("demo")
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await store.read("other")

    asyncio.run(main())


@pytest.mark.parametrize("value", [b"\xff\xff", b"", cell_record_pb2.CellRecord(schema_version=2).SerializeToString()])
def test_a_record_that_is_none_or_newer_is_damage(server: RedisServer, value: bytes) -> None:
    async def main() -> None:
        async with opened(server.url) as store:
            await settled(store)
            assert await store.replace(following(await store.read("demo")))
            with server.client() as client:
                client.hset("export:4:demo", "record", value)
            with pytest.raises(Refused, match="DATA_DAMAGED"):
                await store.read("demo")

    asyncio.run(main())


GOOD = [
    ("redis://127.0.0.1", "127.0.0.1:6379"),
    ("redis://user:pass@localhost:1/3", "localhost:1"),
    ("redis://:p%40ss@[::1]:6380", "::1:6380"),
    ("rediss://redis.example", "redis.example:6379"),
    ("redis+sentinel://:pw@127.0.0.1,127.0.0.2:2/main/1", "127.0.0.1:26379,127.0.0.2:2/main"),
]
BAD = [
    "redis://",
    "redis://host:port",
    "redis://host/x",
    "redis://host/0/1",
    "redis://host?ssl_ca_certs=x",
    "rediss://host?ssl_ca_certs=/nowhere/at/all",
    "rediss://host?socket_timeout=900",
    "redis+sentinel://host",
    "redis://user:canary/secret@host:6379",
    "redis+sentinel://user:canary/secret@host:1/x",
    "redis://user:ab[canary]cd@host",
    "redis://user:canary\u2100@host",
]


@pytest.mark.parametrize(("url", "text"), GOOD)
def test_a_url_says_where_redis_is_and_its_text_holds_no_password(url: str, text: str) -> None:
    place = RedisPlace.parse("STORE", url)
    assert str(place) == text
    for secret in ("pass@", "'pass'", "p@ss", "p%40ss", "pw"):
        assert secret not in repr(place) + str(place)


@pytest.mark.parametrize("url", BAD)
def test_a_bad_url_is_one_sentence(url: str) -> None:
    with pytest.raises(SettingError, match=r"^STORE: must be like redis://[^\n]+\.$") as raised:
        RedisPlace.parse("STORE", url)
    assert "canary" not in str(raised.value)


def test_plaintext_to_another_machine_is_refused(unit: Unit) -> None:
    server = unit.start("server", CELLEXPORT_STORE="redis://user:canary@redis.example:6379/0")
    assert server.process.wait(60) == 2
    message = server.log.read_text()
    assert "CELLEXPORT_STORE: redis.example:6379 is, or may lead to, another machine" in message
    assert "canary" not in message


def test_a_wrong_password_ends_the_start_with_one_sentence(unit: Unit, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "locked", "--requirepass", "right")
    try:
        program = unit.start("server", CELLEXPORT_STORE=f"redis://:canary@127.0.0.1:{server.port}/0")
        assert program.process.wait(60) == 2
        assert program.log.read_text().count("\n") == 1
        assert "canary" not in program.log.read_text()
    finally:
        server.stop()


def test_the_documented_user_may_do_all_that_is_needed_and_nothing_else(unit: Unit, server: RedisServer) -> None:
    text = (ROOT / "docs" / "redis.md").read_text()
    rule = re.search(r"^user cellexport (.+)$", text, re.MULTILINE)
    assert rule
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "cellexport", *rule[1].replace("{password}", "secret").split())

    url = f"redis://cellexport:secret@127.0.0.1:{server.port}/0"
    password = unit.directory / "store"
    password.write_text(url + "\n")
    unit.start_server(CELLEXPORT_STORE_FILE=str(password))
    eventually(server.is_settled)

    with unit.channel() as channel:
        exporter = HandExporter(channel)
        unit.begin()
        exporter.report(exporter.must_claim(), 1, 10)
    assert unit.cancel().exportation.cancel_requested

    limited = server.client(username="cellexport", password="secret")
    for command in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("GET", "other"), ("KEYS", "*")):
        with pytest.raises(Exception, match=r"(?i)no permissions"):
            limited.execute_command(*command)
    limited.close()


def certificates(directory: Path) -> None:
    """Write a self-signed certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(certificate.public_bytes(encoding))
    plain = serialization.NoEncryption()
    (directory / "key.pem").write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))


def test_over_tls_only_a_redis_that_proves_who_it_is_is_spoken_to(unit: Unit, tmp_path: Path) -> None:
    certificates(tmp_path)
    tls_port = free_port()
    files = ("--tls-cert-file", f"{tmp_path}/cert.pem", "--tls-key-file", f"{tmp_path}/key.pem")
    more = ("--tls-ca-cert-file", f"{tmp_path}/cert.pem", "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "tls", "--tls-port", str(tls_port), *files, *more)

    try:
        url = f"rediss://localhost:{tls_port}/0?ssl_ca_certs={tmp_path}/cert.pem"
        program = unit.start_server(CELLEXPORT_STORE=url)
        eventually(server.is_settled)
        unit.begin("encrypted")
        program.kill()

        # The server must refuse a Redis whose certificate has another name (not 127.0.0.1), or is from an unknown
        # authority.
        for stranger in (url.replace("localhost", "127.0.0.1"), url.partition("?")[0]):
            refused = unit.start_server(CELLEXPORT_STORE=stranger)
            refused.wait_for_log("Redis unavailable at start")
            refused.kill()
    finally:
        server.stop()


@pytest.mark.fault("F34")
@pytest.mark.long
@needs("redis-sentinel")
@pytest.mark.timeout(120)
def test_sentinels_lead_to_the_replica_that_follows(unit: Unit, tmp_path: Path) -> None:
    primary = RedisServer(tmp_path / "primary", *DURABLE)
    replica = RedisServer(tmp_path / "replica", *DURABLE, "--replicaof", "127.0.0.1", str(primary.port))
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor cells 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds cells 1000\nsentinel failover-timeout cells 3000\n"
    )

    with (tmp_path / "sentinel.log").open("wb") as log:
        sentinel = subprocess.Popen(["redis-sentinel", config], stdout=log, stderr=log, env=dict(os.environ))

    try:
        eventually(lambda: accepts(port))
        url = f"redis+sentinel://127.0.0.1:{port}/cells/0"
        unit.start_server(CELLEXPORT_STORE=url, CELLEXPORT_PLAINTEXT="allow")
        unit.start_gateway()
        eventually(primary.is_settled)

        unit.begin("survives")
        with primary.client() as client:
            assert client.wait(1, 5000) == 1

        # Sentinel asks the primary for its replicas only every ten seconds. It must know the replica before the primary
        # dies.
        eventually(lambda: b"num-slaves=1" in sentinel_state(port), within=20)
        before = unit.get()

        primary.kill()
        eventually(lambda: unit.http().status == 200, within=40)

        after = unit.get()
        assert after.exportation == before.exportation
        assert after.revision > before.revision
        assert replica.is_settled()
    finally:
        sentinel.kill()
        sentinel.wait(10)
        primary.stop()
        replica.stop()


def sentinel_state(port: int) -> bytes:
    command = ["redis-cli", "-p", str(port), "sentinel", "master", "cells"]
    words = subprocess.run(command, capture_output=True, check=True).stdout.split()
    return b" ".join(key + b"=" + value for key, value in zip(words[::2], words[1::2], strict=False))
