"""The bundled exporter: a client of the server that turns a cell's directory into a snapshot zip.

- `claims` claims exports, and `runner` runs them. `heartbeat` reports the progress, `tally` counts it, and `bar`
  shows it. `outcome` pairs results with reasons. `calls` says which failed calls to the server may be retried.
- `walk` finds the cell's files, `names` makes their names safe, `archive` writes the zip, and `snapshot` fills it.
- `snapshot_directory` holds the snapshots and the error notes of failed exports. `part` is an unfinished snapshot.
- `verifying/` proves that a snapshot is complete.

The exporter may import `cellexport`, and nothing else of the server: another exporter can replace this one.
"""
