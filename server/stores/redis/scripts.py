"""The names of the keys in Redis, and the atomic scripts (`*.lua`) that read and write them.

`export:mark`             the mark, a hash: `run` (the run of Redis that the servers trust), `floor`, `settled`, and
                          `top`, the highest revision that was ever written
`export:{len}:{cell}`     a hash: `revision`, and `record`, a `cellexport.store.v1.CellRecord`
`export:underway`         a sorted set: the cells with an export, by the time the export was accepted
`export:changed`          a channel: the name of a cell whose record has changed; an empty text if an export was queued;
                          `*` if the mark has changed, and so any record may have changed

A mark is valid only in the run of Redis that wrote it. If the mark is missing, or of another run, writes may be lost:
Redis was emptied or restarted, or a replica was promoted. Then a script writes a new mark. Its floor is above all
revisions that ever existed, and it is not settled. Until it is settled, a record below the floor is doubtful, and it
reads as if it had the floor as its revision.

Every script except `begin` first compares the floor that the caller knows with the floor of the mark, and does nothing
if they differ.
"""

from importlib.resources import files

MARK = "export:mark"
UNDERWAY = "export:underway"
CHANNEL = "export:changed"
EVERYTHING = b"*"
QUEUED = b""


def cell_key(cell: str) -> str:
    """Return the key of a cell's record."""
    return f"export:{len(cell)}:{cell}"


def load(name: str) -> str:
    """Return the text of a script, by its file's name without `.lua`."""
    return files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
