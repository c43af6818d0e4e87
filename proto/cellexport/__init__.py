"""What the three programs and Python callers share.

- `v1`: the contract, and the stubs made from it
- `client`: a channel to the server, done right
- `watching`: a watch that goes on through restarts of the server
- `service_config.json`: which calls are tried again, and how calls are spread over servers
- `settings`: settings from the environment; `address`: addresses to listen at
- `door`: where a program listens, and what is open to whom
- `pem`: certificates and keys, read anew when they change; `renewing`: a channel that follows them
- `logs`: the application log
- `metrics`: the door that metrics are read at
- `tracing`: whose a call is across programs; `spans`: the same recorded, where OpenTelemetry is installed
"""
