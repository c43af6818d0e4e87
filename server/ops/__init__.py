"""What operators see of the server: metrics, traces, logs, health and shutdown. Nothing here calls a rule of `exports`.

- `call_observer` observes every call for `metrics`, traces and the log. `prometheus_*` implement the metrics.
- `event_log` writes the events of `exports.events` to a file.
- `health` and `reflection` are public services; `public_streams` limits their streams.
- `drain` shuts the server down without losing a call.

May import rpc, exports, refusals, tasks, and cellexport.
"""
