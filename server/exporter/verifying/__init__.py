"""The check that a snapshot is complete: `verify` checks a file, `command` is `python -m server.exporter verify`.

`file_window` reads the file, `zip_directory` and `zip_entry` read the zip, and `listing` reads the manifest and the
list of entries.
"""
