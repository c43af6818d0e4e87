"""The embedded store: `file` is the SQLite file and its schema, `rows` converts records, `store` is the adapter."""
