"""Commands that train students and show results; with `cli.py` the only modules of this package that import click."""
