"""The cell directory: `cells/{cell}/cell.toml` is a cell's access file. A cell is there when its file is.

A request costs one look at one file's status; the file is read again when that has changed. No request walks over other
cells.
"""

import os
import re
import stat
import tomllib
from collections import OrderedDict
from pathlib import Path

from server.errors import Refusal, Refused
from server.model import Cell

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_OWNER_LIMIT = 2048
_FILE_LIMIT = 1024 * 1024
_REMEMBERED_CELLS = 20_000

_Version = tuple[int, int, int]


class CellDirectory:
    """Finds cells by name.

    Args:
        root: the directory `cells` of the unit.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._memory: OrderedDict[str, tuple[_Version, Cell]] = OrderedDict()

    @staticmethod
    def require_name(name: str) -> None:
        """Raise `Refused` with CELL_NOT_FOUND if no cell can have that name."""
        if not _NAME.fullmatch(name):
            raise Refused(Refusal.CELL_NOT_FOUND)

    def find(self, name: str) -> Cell:
        """The cell of that name.

        Raises:
            Refused: CELL_NOT_FOUND; DATA_DAMAGED if its access file can't be used.
        """
        self.require_name(name)
        path = f"{self._root}/{name}/cell.toml"
        version = _version(path)
        known = self._memory.get(name)
        if known is not None and known[0] == version:
            return known[1]
        cell = self._read(name, path)
        self._memory.pop(name, None)
        self._memory[name] = (version, cell)
        if len(self._memory) > _REMEMBERED_CELLS:
            self._memory.popitem(last=False)
        return cell

    def _read(self, name: str, path: str) -> Cell:
        # A link would let one cell's name show another's files.
        if stat.S_ISLNK(os.lstat(f"{self._root}/{name}").st_mode):
            raise Refused(Refusal.CELL_NOT_FOUND)
        try:
            with Path(path).open("rb") as file:
                content = tomllib.loads(file.read(_FILE_LIMIT).decode())
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path, str(error)) from error
        owner = content.get("owner")
        if not isinstance(owner, str) or not 0 < len(owner) <= _OWNER_LIMIT:
            raise _damaged(path, f"there is no owner of at most {_OWNER_LIMIT} characters")
        return Cell(name=name, owner=owner)


def _version(path: str) -> _Version:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused(Refusal.CELL_NOT_FOUND) from error
    except OSError as error:
        raise _damaged(path, type(error).__name__) from error
    if not stat.S_ISREG(status.st_mode):
        raise Refused(Refusal.CELL_NOT_FOUND)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _damaged(path: str, why: str) -> Refused:
    return Refused(Refusal.DATA_DAMAGED, note=f"{path}: {why}")
