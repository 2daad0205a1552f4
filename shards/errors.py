"""The errors a user can meet.

    Exception
    ├── ValueError             something the user set: a flag, a field, a range
    └── ArtefactError          something on disk or over the wire is not what it must be
        ├── ShardError         shards, their index, the bytes of a sample
        ├── CacheError         the teacher cache: spec, ledger, units, records
        └── RunError           a student run: its directory, checkpoints, weights

Every message says what is wrong, where, what was expected and what was found, and what to do next. `cli.py` prints it
as one clean message; a traceback that reaches a user is a bug. What the operating system refuses (OSError) is put into
words at one place, `system_words`.
"""

import errno
import os

_REMEDIES = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room within your quota, or choose another place",
    errno.EFBIG: "the file system or a limit (`ulimit -f`) allows no larger file: choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.EMFILE: "raise the limit (`ulimit -n`), or use fewer --workers",
    errno.ENFILE: "the machine has too many files open: close some",
    errno.ENOENT: "check the path; its folder must exist",
    errno.ENOTDIR: "a file stands where a folder is meant: check the path",
    errno.EISDIR: "a folder stands where a file is meant: check the path",
    errno.EEXIST: "something of that name is there: check the path",
    errno.ELOOP: "its symbolic links lead in a circle: remove them",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOMEM: "free memory, or use fewer --workers",
    errno.EBADF: "give the command an open output",
    errno.EPIPE: "whoever read it has gone; the command has not done all it had to say",
    errno.EIO: "the disk fails: look at the system's log",
    errno.ENXIO: "it is no file: check the path",
    errno.ESTALE: "the network file system lost it: mount it again",
}


def system_words(error: OSError) -> str:
    """An error of the operating system in one line: which file, what happened, what to do."""
    name = "" if error.filename is None else error.filename
    where = f"{os.fsdecode(name) if isinstance(name, (str, bytes)) else name}: " if name != "" else ""
    what = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk, and run the command again")
    return f"{where}{what[0].lower()}{what[1:]}; {remedy}"


class ArtefactError(Exception):
    """An artefact is missing, damaged, foreign or unfinished."""


class ShardError(ArtefactError):
    """A shard, the index, or the bytes of a sample."""


class CacheError(ArtefactError):
    """The teacher cache."""


class RunError(ArtefactError):
    """A student run."""
