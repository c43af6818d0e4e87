"""What the three programs and Python callers share.

- `v1`: the contract, and the stubs made from it
- `client`: a channel to the server, done right
- `watching`: a watch that goes on through restarts of the server
- `settings`: settings from the environment
- `logs`: the application log
- `metrics`: the door that metrics are read at
- `tracing`: whose a call is across programs; `spans`: the same recorded, where OpenTelemetry is installed
"""
