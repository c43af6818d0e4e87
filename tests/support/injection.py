"""Faults to inject with the tools of a plain Debian: small disks, failing system calls, a relay that holds back."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from unit import Program, Unit, eventually


def _may_mount() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "--mount", "true"]).returncode == 0


needs_mount = pytest.mark.skipif(os.geteuid() != 0 or not _may_mount(), reason="needs root's right to mount a disk")


def warm(unit: Unit) -> None:
    """Send requests, so that the gateway has started its threads before its use of resources is measured."""
    for _ in range(60):
        unit.http()


@contextmanager
def disk(place: Path, options: str) -> Iterator[Path]:
    """Mount a disk in memory (tmpfs) at the directory `place` while the context is open."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield place
    finally:
        # Unmount lazily, because programs that a test has left running may have open files on the disk.
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def fill(place: Path) -> Path:
    """Fill a disk, and return the file that takes the space."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@contextmanager
def failing(program: Program, calls: str, error: str, *paths: Path) -> Iterator[Path]:
    """Make system calls of a running program fail with an error, only on these paths if any are given.

    The context's value is a file with one line for each failed call.
    """
    log = program.log.with_suffix(f".{error}")
    only = [word for path in paths for word in ("-P", str(path))]
    inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"]
    pid = program.process.pid
    tracer = subprocess.Popen(
        ["strace", "-f", "-qqq", "-o", log, *only, *inject, "-p", str(pid)], stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: tracer.poll() is not None or _is_traced(pid))
        assert tracer.poll() is None, "strace could not attach"
        yield log
    finally:
        tracer.terminate()
        tracer.wait(10)


def traced(calls: str, inject: str, log: Path | str = "/dev/null", paths: Sequence[Path] = ()) -> list[str]:
    """Return the words to put before a command, so that strace makes its system calls `calls` fail.

    The calls fail from the program's start, as `inject` says. The program is a child of the test, not of strace. Strace
    ends with the program.
    """
    only = [word for path in paths for word in ("-P", str(path))]
    return [
        "strace",
        "-D",
        "-f",
        "-qqq",
        "-o",
        str(log),
        *only,
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:{inject}",
    ]


def slow_to_read(path: Path) -> list[str]:
    """Return the words to put before an exporter's command, so that it needs 0.4 seconds for each MiB of one file.

    The exporter sleeps in each read of the file. So an export can take long and yet leave the processor to other tests.
    """
    # The exporter reads 256 KiB at a time, and each read takes 0.1 seconds longer.
    return traced("read", "delay_exit=100000", paths=[path])


def _is_traced(pid: int) -> bool:
    statuses = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return not any("TracerPid:\t0\n" in status for status in statuses)


class Wire:
    """A relay to a port that holds all bytes back between `hold` and `let_go`, and loses none."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> "Wire":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._flows.set()
        for opened in self._sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def hold(self) -> None:
        self._flows.clear()

    def let_go(self) -> None:
        self._flows.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
