"""The losses against the teacher, one a file, and their table. Nothing here imports torch before a loss is computed.

A new loss is a file with a `DistillLoss` and a line in `table.LOSSES`; command line, grid, checks, export and report
ask the value.
"""
