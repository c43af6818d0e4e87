"""The server: who may ask, which export runs, and what the status is.

- `exports` are the rules, and the port of the store. `stores` are its adapters: SQLite and Redis.
- `auth` judges callers. `rpc` is the gRPC edge. `ops` is what operators see: health, metrics, logs, drain.
- `exporter` is a program of its own, a client like anyone's exporter. The server borrows only its snapshot directory.
- `refusals` are all errors, as data. `cells` reads access files. `token_command` makes and explains tokens.

Imports lead from `ops` to `rpc`, from there to `auth` and `exports`; only `wiring` and `__main__` know every room.
"""
