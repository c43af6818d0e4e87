"""The shared store: `place` parses its URL, `client` connects, `scripts` and `*.lua` are its atomic operations.

`encoding` converts records, `listener` subscribes to changes, and `store` is the adapter.
"""
