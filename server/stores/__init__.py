"""The adapters of the port `exports.store`: SQLite for one server, Redis for several.

- `opening` chooses the store by its setting, and opens it.
- `sqlite/` and `redis/` are the adapters. Both pass the same contract tests.
- `measured` times the operations of any store. `changes` notifies subscribers within one server.

May import exports, refusals, tasks, and cellexport.
"""
