"""Part of `make bench`: the cost of judging a token, uncached and cached, and whether refusals differ in time.

All times are microseconds of this process's CPU time. The rounds of all rows alternate, so that the rows can be
compared.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from cellexport.environment import Environment
from cellexport.program.unit_urls import UnitUrls
from server.auth.credentials import Credentials
from server.auth.opening import build_judge
from server.auth.rights import Privilege
from server.auth.settings import TokenSettings
from server.cells import CellDirectory
from server.refusals import Refused
from tokens import (
    ACCESS_FILE,
    CELL_URL,
    PEER,
    SECRET,
    Issuer,
    cookie,
    encrypt,
    expired,
    fields,
    local,
    now,
    resident,
    today,
    visitor,
)
from unit import TOKEN, UNIT_URL

ROUNDS = 31
COUNT = 200
ALGORITHMS = ("RS256", "ES256", "EdDSA", "HS256")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        judging, tokens = _judging(Path(directory))
        print(f"\n{'µs to judge a token':36}{'first':>8}{'again':>8}")
        first = _medians(judging, {name: [make(n) for n in range(COUNT)] for name, make in tokens.items()}, fresh=True)
        again = _medians(judging, {name: [make(0)] * COUNT for name, make in tokens.items()}, fresh=False)
        for name in tokens:
            print(f"{name:36}{first[name]:8.1f}{again[name]:8.1f}")
        reading = statistics.median([judging.read_access_file(COUNT) for _ in range(ROUNDS)])
        print(f"and each time, a read of the access file{reading:12.1f}")
        _report_refusals(judging)


def _report_refusals(judging: "_Judging") -> None:
    for title, makes in (("token", _REFUSED_TOKENS), ("cookie", _REFUSED_COOKIES)):
        print(f"\n{f'µs to refuse a {title} with one answer':36}")
        times = _medians(judging, {name: [make()] * COUNT for name, make in makes.items()}, fresh=False)
        for name, spent in times.items():
            print(f"{name:36}{spent:8.1f}")
        print(f"slowest / fastest: {max(times.values()) / min(times.values()):.2f}")


class _Judging:
    """A judge of every kind of token, and a cell directory."""

    def __init__(self, directory: Path, issuers: Path) -> None:
        self._cells = CellDirectory(directory / "cells")
        variables = {"CELLEXPORT_UNIT_URL": UNIT_URL, "CELLEXPORT_MASTER_TOKEN": TOKEN}
        variables |= {"CELLEXPORT_UNIT_SECRET": SECRET, "CELLEXPORT_TRUSTED_ISSUERS": str(issuers)}
        environment = Environment(variables)
        self._settings, self._urls = TokenSettings.read(environment), UnitUrls.read(environment)
        self.forget()

    def forget(self) -> None:
        self._judge = build_judge(self._settings, self._urls, now)

    def read_access_file(self, times: int) -> float:
        """Return the mean microseconds that it takes to read the access file of the cell `demo`."""
        started = time.process_time()
        for _ in range(times):
            self._cells.find("demo")
        return (time.process_time() - started) / times * 1e6

    def spend(self, presented: Sequence[Credentials]) -> float:
        """Return the mean microseconds that the judge takes for one of these credentials."""
        cell = self._cells.find("demo")
        started = time.process_time()
        for credentials in presented:
            with suppress(Refused):
                self._judge.judge(credentials, cell, Privilege.ROOT)
        return (time.process_time() - started) / len(presented) * 1e6


def _judging(directory: Path) -> tuple[_Judging, dict[str, Callable[[int], Credentials]]]:
    (directory / "cells/demo").mkdir(parents=True)
    (directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
    issuers = {name: Issuer(directory / name, name, f"https://{name}.example/").add_key("one") for name in ALGORITHMS}
    whole = directory / "issuers.toml"
    tables = [
        (it.directory / "issuers.toml").read_text().replace('"jwks', f'"{name}/jwks') for name, it in issuers.items()
    ]
    whole.write_text("\n".join(tables))
    makes: dict[str, Callable[[int], Credentials]] = {
        "master token": lambda number: bearer(TOKEN),
        "account's (AR~)": lambda number: bearer(resident(schema=str(number))),
        "visitor's (AV~)": lambda number: bearer(visitor(f"{CELL_URL}__role/__/admin", schema=str(number))),
        "account's, in a cookie": lambda number: of_cookie(cookie(resident(schema=str(number)))),
    }
    for name, issuer in issuers.items():
        makes[f"JWT by {name}"] = partial(_jwt, issuer)
    return _Judging(directory, whole), makes


def _medians(judging: _Judging, rows: dict[str, list[Credentials]], *, fresh: bool) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name, presented in rows.items():
            if fresh:
                judging.forget()
            found[name].append(judging.spend(presented))
    return {name: statistics.median(times) for name, times in found.items()}


def _jwt(issuer: Issuer, number: int) -> Credentials:
    return bearer(issuer.token(jti=number))


def bearer(token: str) -> Credentials:
    return Credentials(authorization=f"Bearer {token}")


def of_cookie(value: str) -> Credentials:
    return Credentials(cookies=(value,), peers=(PEER,))


def _flipped(token: str, place: int) -> str:
    return token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]


_REFUSED_TOKENS: dict[str, Callable[[], Credentials]] = {
    "changed at the beginning": lambda: bearer(_flipped(resident(), 4)),
    "changed in the middle": lambda: bearer(_flipped(resident(), 45)),
    "changed at the end": lambda: bearer(_flipped(resident(), -3)),
    "cut short": lambda: bearer(resident()[:-1]),
    "a foreign character": lambda: bearer(resident()[:-1] + "!"),
    "a block less": lambda: bearer(resident()[:-22]),
    "another secret": lambda: bearer(local("AR~", fields("0"), secret="another-16-bytes")),
    "another cell's": lambda: bearer(resident(issuer=f"{UNIT_URL}othr/")),
    "a field too many": lambda: bearer(local("AR~", fields("0", ""))),
    "the wrong type": lambda: bearer(local("AR~", fields("1"))),
    "from the future": lambda: bearer(resident(issued=expired(-(10**8)))),
    "lives too long": lambda: bearer(resident(lifespan="99999999999")),
    "padding of 0": lambda: bearer("AR~" + encrypt(b"x" * 80, today(CELL_URL), padding=bytes(16))),
    "an unknown prefix": lambda: bearer("XX~" + resident()[3:]),
    "a grant code": lambda: bearer(local("GC~", fields("5"))),
}
_REFUSED_COOKIES: dict[str, Callable[[], Credentials]] = {
    "changed at the beginning": lambda: of_cookie(_flipped(cookie(resident()), 4)),
    "changed in the middle": lambda: of_cookie(_flipped(cookie(resident()), 100)),
    "changed at the end": lambda: of_cookie(_flipped(cookie(resident()), -3)),
    "cut short": lambda: of_cookie(cookie(resident())[:-1]),
    "a foreign character": lambda: of_cookie(cookie(resident())[:-1] + "!"),
    "another peer's": lambda: of_cookie(cookie(resident(), peer=PEER[:-1] + "x")),
    "another host's": lambda: of_cookie(cookie(resident(), host="unit2.example")),
    "without a token": lambda: of_cookie(encrypt((PEER + "x" * 88).encode(), today("#n#t1.#x#mpl#"))),
}


if __name__ == "__main__":
    main()
