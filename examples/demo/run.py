"""`make run`: runs the three programs until Ctrl-C, on a demo unit unless `CELLEXPORT_UNIT_DIR` names another.

The demo unit has one cell, filled with copies of Python's standard library: real files of many sizes. The first run
makes the unit, its master token and its secret in the unit directory; later runs use them again.
"""

import errno
import os
import secrets
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from honcho.manager import Manager

from cellexport.address import Address
from cellexport.environment import Environment, SettingError
from cellexport.program.listening import Listener
from server.settings import Settings

_CELL = "demo"
_ACCESS_FILE = """\
owner = "http://localhost:8080/unitadmin/#owner"
[accounts]              # account = its roles
admin = ["admin"]
staff = ["staff"]
[acl]                   # role = its privileges: root may start exports and read their status
admin = ["root"]
staff = ["auth-read"]
"""
# The user's own master token, in the form in which the printed shell commands contain it.
_OWN = "$CELLEXPORT_MASTER_TOKEN"
# The demo cell gets at least this many bytes and files.
_ENOUGH_BYTES = 300 * 1024 * 1024
_ENOUGH_FILES = 10_000
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages")
_PROGRAMS = ("server", "exporter", "gateway")


@dataclass(frozen=True, slots=True)
class _Plan:
    """The programs' variables, and the data for the printed commands."""

    variables: dict[str, str]
    http: Listener
    grpc: Address
    cell: str
    # The generated master token, or a shell expression for the user's own.
    token: str
    # Whether this program generated the unit's secret, so that the printed command can mint tokens of accounts.
    has_secret: bool


def main() -> None:
    try:
        plan = _plan(os.environ)
    except (SettingError, OSError) as error:
        print(f"make run: {error}", file=sys.stderr)
        sys.exit(2)
    print(_instructions(plan), flush=True)
    sys.exit(_start(plan))


def _plan(variables: Mapping[str, str]) -> _Plan:
    environment = Environment(variables)
    http = environment.listen("CELLEXPORT_HTTP_LISTEN", "127.0.0.1:8080")
    grpc = environment.listen("CELLEXPORT_GRPC_LISTEN", "127.0.0.1:50051")
    for name, address in (("CELLEXPORT_HTTP_LISTEN", http), ("CELLEXPORT_GRPC_LISTEN", grpc)):
        _require_free(name, address)
    master = environment.secret("CELLEXPORT_MASTER_TOKEN")
    unit = _unit(environment)
    chosen = dict(variables) | {
        "CELLEXPORT_UNIT_DIR": str(unit),
        "CELLEXPORT_UNIT_URL": environment.text("CELLEXPORT_UNIT_URL", f"http://localhost:{http.port}/"),
        "CELLEXPORT_LOG_FORMAT": environment.text("CELLEXPORT_LOG_FORMAT", "text"),
        "PYTHONUNBUFFERED": "1",
    }
    own = ("CELLEXPORT_UNIT_DIR", "CELLEXPORT_UNIT_SECRET", "CELLEXPORT_UNIT_SECRET_FILE")
    has_secret = not any(environment.text(name, "") for name in own)
    if has_secret:
        chosen["CELLEXPORT_UNIT_SECRET_FILE"] = str(_make_secret(unit / "unit_secret", secrets.token_hex(16)))
    # Report an invalid setting now, not in the middle of three programs' logs.
    Settings.read(chosen)
    listener = Listener.read(environment, "HTTP", "127.0.0.1:8080")
    if master is None:
        file = _make_secret(unit / "master_token", secrets.token_urlsafe(32))
        chosen["CELLEXPORT_MASTER_TOKEN_FILE"] = str(file)
        token = file.read_text().strip()
    elif variables.get("CELLEXPORT_MASTER_TOKEN"):
        token = _OWN
    else:
        token = f"$(cat {Path(variables['CELLEXPORT_MASTER_TOKEN_FILE']).absolute()})"
    return _Plan(chosen, listener, grpc, _cell(unit), token, has_secret)


def _unit(environment: Environment) -> Path:
    """Return the user's own unit, or the demo unit."""
    own = environment.text("CELLEXPORT_UNIT_DIR", "")
    if own:
        return environment.directory("CELLEXPORT_UNIT_DIR", own)
    unit = Path("var", "unit").absolute()
    _make_unit(unit)
    return unit


def _cell(unit: Path) -> str:
    """Return the name of one of the unit's cells, for the printed commands."""
    return next((path.parent.name for path in (unit / "cells").glob("*/cell.toml")), "{CellName}")


def _require_free(name: str, address: Address) -> None:
    try:
        address.probe()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise SettingError(f"{name}: {address} can't be listened on ({error.strerror}).") from error
        raise SettingError(
            f"{name}: {address} is taken. Stop the program that uses it, "
            f"or choose another address, like {name}={address.host}:{address.port + 1}."
        ) from error
    if not (address.path or address.port):
        raise SettingError(f"{name}: needs the number of a port here, so that the programs find each other.")


def _make_unit(unit: Path) -> None:
    """Make the demo unit, unless it exists. It appears complete or not at all."""
    cells = unit / "cells"
    if (cells / _CELL).is_dir():
        return
    unit.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = unit / "cells.new"
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / _CELL).mkdir(parents=True)
    (fresh / _CELL / "cell.toml").write_text(_ACCESS_FILE)
    _fill(fresh / _CELL / "webdav")
    fresh.rename(cells)


def _fill(webdav: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    size, files, number = 0, 0, 0
    while size < _ENOUGH_BYTES or files < _ENOUGH_FILES:
        number += 1
        copy = webdav / f"library-{number:02}"
        shutil.copytree(library, copy, symlinks=True, ignore=_LEFT_OUT)
        sizes = [path.lstat().st_size for path in copy.rglob("*") if path.is_file() and not path.is_symlink()]
        size, files = size + sum(sizes), files + len(sizes)
        share = min(100, size * 100 // _ENOUGH_BYTES, files * 100 // _ENOUGH_FILES)
        if sys.stdout.isatty():
            print(f"\rMaking a demo cell of real files: {share:3}% ({files:,} files)", end="", flush=True)
    print(f"\rMade a demo cell of {files:,} real files.       ", flush=True)


def _make_secret(file: Path, secret: str) -> Path:
    """Return the file of a secret. Write the secret if the file is missing."""
    if not file.exists():
        fresh = file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secret + "\n")
        fresh.rename(file)
    return file


def _shown(token: str) -> str:
    return "CELLEXPORT_MASTER_TOKEN as you set it: set it in the other terminal too" if token == _OWN else token


def _instructions(plan: _Plan) -> str:
    url = f"{plan.http.curl}/{plan.cell}/__export"
    header = f'-H "Authorization: Bearer {plan.token}"'
    buf = Path(sys.executable).parent / "buf"
    snapshots = Path(plan.variables["CELLEXPORT_UNIT_DIR"]) / "snapshots"
    return f"""
URL    {url}
Token  {_shown(plan.token)}

Paste into another terminal:

  start an export     curl -i -X POST {header} {url}
  read its status     curl -i {header} {url}
  watch it            while sleep 1; do curl -s {header} {url}; echo; done
  the same over gRPC  {buf} curl \\
                        --protocol grpc --http2-prior-knowledge {header} \\
                        -d '{{"cell":"{plan.cell}"}}' http://{plan.grpc}/cellexport.v1.CellExportService/GetCellExport{_account(plan)}
  for the examples    {_variables(plan)}

Snapshots appear in {snapshots}. Ctrl-C stops everything.
"""


def _variables(plan: _Plan) -> str:
    """Return the command that sets the variables of the examples. `URL` is left out for a unix socket: the example with
    curl can't use one.
    """
    url = "" if plan.http.address.path else f" URL={plan.http.curl}"
    return f'export TOKEN="{plan.token}" CELLEXPORT_GRPC_TARGET={shlex.quote(str(plan.grpc))}{url}'


def _account(plan: _Plan) -> str:
    """Return the command that mints a token of an account, if the unit's secret was generated here."""
    if not plan.has_secret:
        return ""
    names = ("CELLEXPORT_UNIT_URL", "CELLEXPORT_UNIT_SECRET_FILE", "CELLEXPORT_HTTP_LISTEN")
    variables = " ".join(f"{name}={shlex.quote(plan.variables[name])}" for name in names if name in plan.variables)
    program = Path(sys.executable).parent / "cellexport-server"
    return f"""
  as an account       {variables} \\
                        {program} token mint resident --cell {plan.cell} --subject admin"""


class _Manager(Manager):
    """A manager that ends the exporter first, so that it can report to the server how its export ended."""

    _exporter_ended = False

    def terminate(self) -> None:
        exporter = self._processes["exporter"]
        # honcho calls this method again when a program has stopped, and after a second Ctrl-C: then end the others too.
        if self._exporter_ended or self._any_stopped() or "pid" not in exporter:
            super().terminate()
        else:
            self._procmgr.terminate(exporter["pid"])
        self._exporter_ended = True


def _start(plan: _Plan) -> int:
    manager = _Manager()
    modules = {"server": "server", "exporter": "server.exporter", "gateway": "gateway"}
    for name in _PROGRAMS:
        manager.add_process(name, f"exec '{sys.executable}' -m {modules[name]}", env=plan.variables)
    manager.loop()
    code = int(manager.returncode or 0)
    # 130 and 143 are the exit statuses after Ctrl-C and SIGTERM, the normal ways to end `make run`.
    return 0 if code in (130, 143) else code


if __name__ == "__main__":
    main()
