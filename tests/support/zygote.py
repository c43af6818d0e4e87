"""The zygote: it starts programs quickly, as forks of one interpreter that has already imported their modules.

The suite starts hundreds of programs, and the imports of each cost nearly half a second of processor time. A forked
program is still a separate process, with its own environment, output and signals, and runs `__main__` as `python -m`
does. Programs behind another command, such as `strace`, and programs with variables that only a fresh interpreter
obeys, are started the usual way (see `unit.Unit.start`).

The zygote is the parent process of its programs. It reports their ends over its standard output.
"""

import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

_MODULES = (
    "server.token_command",
    "server.wiring",
    "server.exporter.runner",
    "server.exporter.verifying.command",
    "server.stores.redis.store",
    "gateway",
    "gateway.granian_server",
)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)


class Process(Protocol):
    """A started program: the part of `subprocess.Popen` that the tests use."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Forked:
    """A program that the zygote has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"program {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self, returncode: int) -> None:
        self.returncode = returncode
        self._ended.set()


class Zygote:
    """The interpreter that has imported the modules, as a process beside the tests. Programs are its forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()
        self._started: dict[int, Forked] = {}
        self._answer: list[Forked] = []
        self._answered = threading.Semaphore(0)
        threading.Thread(target=self._listen, name="zygote", daemon=True).start()

    def start(
        self,
        module: str,
        environment: Mapping[str, str],
        log: Path,
        *,
        arguments: Sequence[str] = (),
        given: Path | None = None,
        errors: Path | None = None,
    ) -> Forked:
        """Start a program that writes its output to a file.

        Args:
            log: the file for standard output.
            given: the file for standard input; empty input if omitted.
            errors: the file for standard error; the same as for standard output if omitted.
        """
        order = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": str(Path.cwd()),
            "streams": [str(given or os.devnull), str(log), str(errors or log)],
        }
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            assert self._answered.acquire(timeout=60), "the zygote doesn't answer"
            return self._answer.pop()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            kind, pid, *status = line.split()
            if kind == "started":
                self._started[int(pid)] = Forked(int(pid))
                self._answer.append(self._started[int(pid)])
                self._answered.release()
            else:
                self._started.pop(int(pid)).end(int(status[0]))


def run(
    module: str, *arguments: str, environment: Mapping[str, str], given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return its output like `subprocess.run`."""
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / name for name in ("given", "output", "errors")]
        files[0].write_text(given)
        log, errors = files[1:]
        program = zygote().start(module, environment, log, arguments=arguments, given=files[0], errors=errors)
        status = program.wait(60)
        return subprocess.CompletedProcess([module, *arguments], status, log.read_text(), errors.read_text())


@cache
def zygote() -> Zygote:
    """Return the zygote of this process of the tests. The first call starts it."""
    return Zygote()


def _serve() -> None:
    """Start a program for each line of standard input, and report starts and ends on standard output. Return at the
    end of the input."""
    for module in _MODULES:
        __import__(module)
    assert threading.active_count() == 1, "an import has started a thread: forks would be unsafe"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C sends SIGINT to the zygote too. It must ignore that, and end when the tests close its standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(reader, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    buffer = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if sys.stdin.fileno() in ready:
            data = os.read(sys.stdin.fileno(), 65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                _start(json.loads(line))
        if reader in ready:
            os.read(reader, 4096)
            _report_ends()


def _start(order: dict[str, Any]) -> None:
    pid = os.fork()
    if pid == 0:
        _become(order)
    os.write(sys.stdout.fileno(), f"started {pid}\n".encode())


def _become(order: dict[str, Any]) -> None:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        # The loop above restored the default. Python itself ignores SIGPIPE when it starts.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for target, name in enumerate(order["streams"]):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if target else os.O_RDONLY
            os.dup2(os.open(name, flags, 0o600), target)
        os.closerange(3, 256)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the program
        os.environ.clear()
        os.environ.update(order["environment"])
        time.tzset()
        os.chdir(order["directory"])
        sys.argv = [order["module"], *order["arguments"]]
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException as error:  # noqa: BLE001 - shown like any uncaught error
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # the interpreter calls it before atexit
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _report_ends() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        os.write(sys.stdout.fileno(), f"ended {pid} {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    _serve()
