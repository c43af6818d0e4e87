"""The rules of exports: which export may start, who may report, when an export ends, and what a cell's status is.

- `model`, `lease`, `events`: plain values. `clock`: the time. `store`: the port (interface) to the store of records.
- `transitions`: one pure function for each rule. `repository` reads a record, applies a transition, writes the result.
- `lifecycle` starts, cancels, reports and ends exports. `claims` gives queued exports to exporters.
- `expiry` ends exports whose exporter is silent. `store_pulse` tracks whether the store answers.
- `watches` sends the records of cells to subscribers. `cell_hub` reads one cell's record for all its subscribers.

These modules import no gRPC, no protobuf and no SQL. Of the project they import only `server.refusals`,
`cellexport.request_key` and `cellexport.outcomes`.
"""
