"""A real Redis server for a test: a process on a free port."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from canary import steady
from server.stores.redis.scripts import MARK
from unit import eventually, free_port

# Options with which every acknowledged write survives a restart.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


class RedisServer:
    """A Redis server, started by its constructor. The test must `stop` it."""

    def __init__(self, directory: Path, *options: str, port: int | None = None, before: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.port = port or free_port()
        self._options = options
        self._before = before
        directory.mkdir(parents=True, exist_ok=True)
        self.process = self._start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> "redis.Redis":
        return redis.Redis(port=self.port, socket_timeout=5, **options)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [*self._before, "redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        where = ["--dir", str(self.directory), "--logfile", str(self.directory / "redis.log"), "--daemonize", "no"]
        process = subprocess.Popen([*command, *where, *self._options])
        eventually(self._answers)
        return process

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def restart(self) -> None:
        """Start Redis again on the same files, after `kill`."""
        self.process = self._start()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)

    @contextmanager
    def paused(self) -> Iterator[float]:
        """Pause Redis while the context is open. The context's value is the start of the pause, on the steady clock."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield steady()
        finally:
            self.process.send_signal(signal.SIGCONT)

    def is_settled(self) -> bool:
        """Return whether the store is settled: servers trust its records, and return statuses."""
        with self.client() as client:
            return bool(client.hget(MARK, "settled") == b"1")


@contextmanager
def running(directory: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(directory, *options)
    try:
        yield server
    finally:
        server.stop()
