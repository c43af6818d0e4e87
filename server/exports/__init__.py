"""The rules of exports: what may start, who may report, when an export ends, and what its status is.

- `model`, `lease`, `events`: plain values. `clock`: the time. `store`: the port to where records are kept.
- `transitions`: one pure function for each rule, from a record to the next. `repository`: read, decide, write.
- `lifecycle` starts, cancels, reports and ends exports. `claims` gives queued exports to exporters.
- `expiry` ends exports whose exporter is silent. `watches` follows one cell for many subscribers.
- `store_pulse`: whether the store answers.

Rules import no gRPC, no protobuf, no SQL and no other room: only `server.refusals`, the form of a request key,
and the list of interruptions.
"""
