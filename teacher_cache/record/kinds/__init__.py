"""The kinds of record, one a file, and their table. Nothing here imports numpy or torch before a record is coded.

A new kind is a file with a `RecordKind` and a line in `table.KINDS`; command line, checks, store, status and report ask
the value.
"""
