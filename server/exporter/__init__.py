"""The bundled exporter: a client of the server that turns a cell's directory into a snapshot zip.

- `runner` claims an export, and sees it through to its end
- `heartbeat` tells the server how far it is
- `snapshot` says what goes in, `archive` writes the zip, from what `walk` finds, under names that `names` makes safe
- `verify` proves a snapshot complete: `window` reads the file, `directory` and `member` the zip, `listing` what is said
  of the entries
- `area` is the snapshot directory, with notes of failures; `part` a snapshot in the making, and how it is published

Anyone's exporter can take its place: it imports `cellexport` and nothing else of the server.
"""
