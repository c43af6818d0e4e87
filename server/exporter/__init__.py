"""The bundled exporter: a client of the server that turns a cell's directory into a snapshot zip.

- `runner` claims an export and does it. `heartbeat` reports its progress; `tally` counts, `bar` shows it.
- `walk` finds the cell's files, `names` makes their names safe, `archive` writes the zip, `snapshot` fills it.
- `snapshot_directory` holds the snapshots and the notes of failures. `part` is an unfinished snapshot.
- `verifying/` proves that a snapshot is complete.

May import `cellexport`, and nothing else of the server: anyone's exporter can take its place.
"""
