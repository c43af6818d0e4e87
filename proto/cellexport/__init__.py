"""The package for Python callers, and for the three programs.

- `v1`: the contract and its stubs. `metadata`, `request_key`, `outcomes`: names and forms that both sides share.
- `client`: a channel to the server. `watching`: a watch that survives restarts of the server.
- `service_config.json`: which calls a channel retries, and how it spreads them over servers.
- `pem` and `renewing_channel`: certificates that are read again when they change. `address`, `environment`: settings.
- `program/`: what only the three programs share. `store/`: the format in which a store keeps records.

Nothing here imports a program; nothing outside `program/` imports `program/`.
"""
