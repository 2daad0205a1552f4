"""The errors a user can meet.

    Exception
    ├── ValueError             something the user set: a flag, a field, a range
    └── ArtefactError          something on disk or over the wire is not what it must be
        ├── ShardError         shards, their index, the bytes of a sample
        ├── CacheError         the teacher cache: spec, ledger, units, records
        └── RunError           a student run: its directory, checkpoints, weights

Every message says what is wrong, where, what was expected and what was found, and what to do next. `cli.py` prints it
as one clean message; a traceback that reaches a user is a bug.
"""


class ArtefactError(Exception):
    """An artefact is missing, damaged, foreign or unfinished."""


class ShardError(ArtefactError):
    """A shard, the index, or the bytes of a sample."""


class CacheError(ArtefactError):
    """The teacher cache."""


class RunError(ArtefactError):
    """A student run."""
