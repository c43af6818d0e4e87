"""The gRPC server: it checks callers, gives exports to exporters, and returns the status of each cell's export.

- `exports` are the rules, and the port (interface) to the store. `stores` implements the port with SQLite and Redis.
- `auth` judges callers. `rpc` is the gRPC edge. `ops` is what operators see: health, metrics, logs, drain.
- `exporter` is a separate program, a client of the server. The server imports only its module `snapshot_directory`.
- `refusals` lists all errors of calls, as data. `cells` reads access files. `token_command` makes and explains tokens.

`ops` imports `rpc`, and `rpc` imports `auth` and `exports`. Only `wiring`, `settings` and the commands know all.
"""
