"""The server: who may ask, which export runs, what the status is.

The way of one call, each step one file and one change of vocabulary:

    gRPC call ──▶ guard      who gets in, by `admission` and `auth`; every error's way out, by `failures`
              ──▶ servicer   messages ⇄ the words of `model`
              ──▶ registry   starts, reports and ends by the rules in `steps`; `claims` gives work to exporters;
                             `watches` tells of changes
              ──▶ records    read a record, decide, write it back if nobody else has
              ──▶ stores     the port; `stores.sqlite` and `stores.redis` are its adapters

Outside of all that: `observation` sees each call begin and end (`contexts` reads what is known of it), for
`metrics`, traces and the log.

Beside it: `cells` (the cell directory), `leases` (exports that nobody speaks for any more, and stores in doubt),
`events` (the event log), `errors` (every refusal, as data), `limits` (of streams), `config` (settings), `door` (where
it listens), `health` (with `store_pulse`) and `reflection`, whose streams are bounded by `open_streams`, and how a
server ends: `drain`, by the calls that are `in_flight`, and then its `tasks`. Only `wiring` knows all of them;
`__main__` knows `wiring`, and `token_command`, which makes and explains tokens with the server's very judge.

`server.exporter` is a program of its own: it is a client of the server like any other exporter, and imports nothing
of this package but itself. The server borrows its `area`, because the snapshot directory is where a dead exporter's
last words are. `server.demo` is what `make run` starts.
"""
