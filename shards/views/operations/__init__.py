"""The operations on the pixels of a view, one family a file: how each is drawn, and what it does; and their table.

A new operation is a file with an `OperationKind` and a line in `table.OPERATIONS`; a recipe names it in `operations`.
An operation whose pixels change is a new one with a name of its own and a line in `operation_names.TAKES_PLACE_OF`;
caches go on rendering with theirs.
"""
