"""The cell directory: `cells/{cell}/cell.toml` is a cell's access file. A cell exists if that file exists.

A request costs one `lstat` of that file, which is read again only after it has changed. No request reads other cells.

    owner = "https://unit1.example/admin/#me"
    [accounts]              # account = its roles
    admin = ["admin"]
    [acl]                   # role (of a box: "box/role"), or "all" = privileges
    admin = ["root"]
"""

import os
import re
import stat
import time
import tomllib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.refusals import Refusal, Refused

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_OWNER_LIMIT = 2048
_FILE_LIMIT = 1024 * 1024
# The most dots in a line of an access file: the parser's time and memory grow with the square of the dots in a key.
_MOST_DOTS = 1000
_MOST_CACHED = 20_000
# A file that was changed less than this many nanoseconds ago is not cached: two changes within one tick of the file
# system's clock look like one.
_FRESH_NS = 200_000_000

_Version = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell as its access file describes it: the roles of each account, and the privileges of each role."""

    name: str
    owner: str = ""
    accounts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    acl: Mapping[str, frozenset[str]] = field(default_factory=dict)


class CellDirectory:
    """The cells of a unit, found by name.

    Args:
        root: the directory `cells` of the unit.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._cache: OrderedDict[str, tuple[str, _Version, Cell | Refused]] = OrderedDict()

    @staticmethod
    def require_name(name: str) -> None:
        """Raise `Refused` with CELL_NOT_FOUND if the name is malformed."""
        if not _NAME.fullmatch(name):
            raise Refused(Refusal.CELL_NOT_FOUND)

    def find(self, name: str) -> Cell:
        """Return the cell of that name.

        Raises:
            Refused: CELL_NOT_FOUND; DATA_DAMAGED if its access file can't be used.
        """
        known = self._cache.get(name)
        if known is not None and known[1] == _version(known[0]):
            return _unless_refused(known[2])
        self.require_name(name)
        path = f"{self._root}/{name}/cell.toml"
        version = _version(path)
        cell = self._read(name, path)
        self._cache.pop(name, None)
        if abs(time.time_ns() - max(version[-2:])) > _FRESH_NS:
            self._cache[name] = (path, version, cell)
        if len(self._cache) > _MOST_CACHED:
            self._cache.popitem(last=False)
        return _unless_refused(cell)

    def _read(self, name: str, path: str) -> Cell | Refused:
        """Return the cell, or the refusal for a damaged file. Both are cached until the file changes."""
        try:
            # A symbolic link would show another cell's files under this cell's name.
            if stat.S_ISLNK(os.lstat(f"{self._root}/{name}").st_mode):
                raise Refused(Refusal.CELL_NOT_FOUND)
            return _cell(name, _content(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            # The file was removed after the lstat.
            raise Refused(Refusal.CELL_NOT_FOUND) from error
        except (OSError, ValueError, RecursionError) as error:
            return _damaged(path, str(error))


def _unless_refused(found: Cell | Refused) -> Cell:
    if isinstance(found, Refused):
        raise Refused(found.refusal, note=found.note)
    return found


def _content(path: str) -> dict[str, Any]:
    with Path(path).open("rb") as file:
        data = file.read(_FILE_LIMIT + 1)
    if len(data) > _FILE_LIMIT:
        raise ValueError(f"it is longer than {_FILE_LIMIT} bytes")
    if any(line.count(b".") > _MOST_DOTS for line in data.splitlines()):
        raise ValueError(f"it has a line with more than {_MOST_DOTS} dots")
    return tomllib.loads(data.decode())


def _cell(name: str, content: Mapping[str, Any]) -> Cell:
    owner = content.get("owner")
    if not isinstance(owner, str) or not 0 < len(owner) <= _OWNER_LIMIT:
        raise ValueError(f"owner is not a string of 1 to {_OWNER_LIMIT} characters")
    return Cell(name=name, owner=owner, accounts=_lists(content, "accounts"), acl=_lists(content, "acl"))


def _lists(content: Mapping[str, Any], table: str) -> dict[str, frozenset[str]]:
    """Return a table of lists of strings. A missing table is empty."""
    lists = content.get(table, {})
    if not isinstance(lists, dict):
        raise ValueError(f"{table} is not a table")
    for key, texts in lists.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{table}: {key[:200]!r} is not a list of strings")
    return {key: frozenset(texts) for key, texts in lists.items()}


def _version(path: str) -> _Version:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused(Refusal.CELL_NOT_FOUND) from error
    except OSError as error:
        raise _damaged(path, type(error).__name__) from error
    if not stat.S_ISREG(status.st_mode):
        raise Refused(Refusal.CELL_NOT_FOUND)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _damaged(path: str, why: str) -> Refused:
    return Refused(Refusal.DATA_DAMAGED, note=f"{path}: {why}")
