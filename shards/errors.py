"""The errors a user can meet.

    Exception
    ├── ValueError             something the user set: a flag, a field, a range
    │   ├── UnknownMemberError a name that no member of an open set has
    │   └── OtherVersionError  a stored value that a newer version made, not a damaged one
    └── ArtefactError          something on disk or over the wire is not what it must be
        ├── ShardError         shards, their index, the bytes of a sample
        ├── CacheError         the teacher cache: spec, ledger, units, records
        │   └── UnreachableError  it could not be read or written now; what is stored may be whole
        └── RunError           a student run: its directory, checkpoints, weights

Every message says what is wrong, where, what was expected and what was found, and what to do next. `cli.py` prints it
as one clean message; a traceback that reaches a user is a bug. What the operating system refuses (OSError) is put into
words at one place, `system_words`; several things that are wrong at once are counted at one place, `problems_text`.
"""

import contextlib
import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shards.text.figures import plural

_REMEDIES = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room within your quota, or choose another place",
    errno.EFBIG: "the file system or a limit (`ulimit -f`) allows no larger file: choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.EAGAIN: "raise the limit on processes (`ulimit -u`)",
    errno.EMFILE: "raise the limit (`ulimit -n`)",
    errno.ENFILE: "the machine has too many files open: close some",
    errno.ENOENT: "check the path; its folder must exist",
    errno.ENOTDIR: "a file stands where a folder is meant: check the path",
    errno.EISDIR: "a folder stands where a file is meant: check the path",
    errno.EEXIST: "something of that name is there: check the path",
    errno.ELOOP: "its symbolic links lead in a circle: remove them",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOMEM: "free memory",
    errno.EBADF: "give the command an open output",
    errno.EPIPE: "the program that read it has ended (such as `head`), so the rest was not printed",
    errno.EIO: "the disk fails: look at the system's log",
    errno.ENXIO: "it is no file: check the path",
    errno.ESTALE: "the network file system lost it: mount it again",
}
_HELPED_BY_FEWER_WORKERS = (errno.EAGAIN, errno.EMFILE, errno.ENOMEM)
_TOO_MANY_FILES = frozenset((errno.EMFILE, errno.ENFILE))
_NOW = _TOO_MANY_FILES | {
    *(errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.EINTR),
    *(errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.ESHUTDOWN),
}
"""Errors of the system that say nothing of what is stored: it may be whole. Not EIO, which a failing disk gives."""


class _Running:
    """The flags of the command that runs; None where the library is called without one."""

    flags: frozenset[str] | None = None


@contextlib.contextmanager
def advising(flags: Iterable[str]) -> Iterator[None]:
    """Let messages advise these flags only, as no other is one of the command that runs."""
    before, _Running.flags = _Running.flags, frozenset(flags)
    try:
        yield
    finally:
        _Running.flags = before


def advisable(*flags: str) -> list[str]:
    """Those of the flags that the command that runs has; all of them where there is no command."""
    return [flag for flag in flags if _Running.flags is None or flag in _Running.flags]


def memory_remedy() -> str:
    """What helps where memory is full: flags of the command that runs, and another machine."""
    lower = " or ".join(advisable("--workers", "--batch-size"))
    return f"lower {lower}, or use a machine with more" if lower else "use a machine with more"


def flag_hint(*flags: str) -> str:
    """Those of the flags that the command that runs has, in brackets behind what they do: " (--epochs, --budget)"."""
    names = ", ".join(advisable(*flags))
    return f" ({names})" if names else ""


def fewer_workers() -> str:
    """What to use where there are too many processes: fewer --workers of the command, or workers of the library."""
    if _Running.flags is None:
        return "fewer workers"
    return "fewer --workers" if advisable("--workers") else "fewer processes at once"


def system_words(error: OSError, where: object = "") -> str:
    """An error of the operating system in one line: which file, else `where`, what happened, what to do."""
    name = where if error.filename is None else error.filename
    place = f"{os.fsdecode(name) if isinstance(name, (str, bytes)) else name}: " if name != "" else ""
    what = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk, and run the command again")
    if error.errno in _HELPED_BY_FEWER_WORKERS and advisable("--workers"):
        remedy += ", or use fewer --workers"
    return f"{place}{what[0].lower()}{what[1:]}; {remedy}"


def too_many_files(error: BaseException | None) -> OSError | None:
    """The error of the system behind another that says that too many files are open: then no file is at fault."""
    return _behind(error, _TOO_MANY_FILES)


def unreadable_now(error: BaseException | None, *, or_disk: bool = False) -> OSError | None:
    """Find the error of the system behind another that says only that a file cannot be read now: it may be whole.

    Args:
        or_disk: also a disk that fails (EIO), where what it holds cannot be made again.
    """
    return _behind(error, _NOW | {errno.EIO} if or_disk else _NOW)


def _behind(error: BaseException | None, numbers: frozenset[int]) -> OSError | None:
    seen: set[int] = set()  # code that raises the cause of an error again puts the two behind each other
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


_OUT_OF_MEMORY = re.compile(
    r"Tried to allocate (?P<asked>[\d.]+ \w+).*?GPU (?P<gpu>\d+) has a total capacity of (?P<total>[\d.]+ \w+) "
    r"of which (?P<free>[\d.]+ \w+) is free",
    re.DOTALL,
)
_NO_KERNEL = "does not have a deterministic implementation"
_NO_MEMORY_WORDS = {
    **dict.fromkeys(("can't allocate memory", "annot allocate memory", "Insufficient memory", "std::bad_alloc"), ""),
    "can't start new thread": "raise the limit on processes (`ulimit -u`)",
    "failed to map segment from shared object": "move the library from a file system that is mounted noexec",
    "could not create a primitive": "choose --precision fp32: this processor may lack the operation",
    **dict.fromkeys(
        ("without exception set", "without setting an exception"), "find the library that failed with --debug"
    ),
}
"""How torch, OpenCV, threads, the loader of libraries and oneDNN say it, in errors that are no MemoryError.

Beside the words what else helps, where they may mean something else.
"""
_FULL_GPU = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""How CUDA and its libraries say it, in errors of torch that are no OutOfMemoryError."""
_SHARED_GPU = "Duplicate GPU detected"
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "NCCL")


def is_no_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full: then what was being read or written is not at fault."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY_WORDS)


def is_full_gpu(error: BaseException) -> bool:
    """Whether an error of torch says that a GPU's memory is full; by its name, as torch 2.4 has it elsewhere."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _FULL_GPU)


def no_memory_words(text: str = "") -> str:
    """Say that memory is full; where the error's own words may mean something else, quote them and say what helps."""
    other = next((other for words, other in _NO_MEMORY_WORDS.items() if words in text), "")
    if not other:
        return f"not enough memory; {memory_remedy()}"
    flags = re.findall("--[a-z-]+", other)
    helps = f"or {other} " if len(advisable(*flags)) == len(flags) else ""
    return f"not enough memory; {memory_remedy()}; {helps}({text.strip()[:200]})"


_LESS_OF_A_GPU = {
    "--batch-size": "lower --batch-size",
    "--accumulate": "give --accumulate N",
    "--precision": "give --precision bf16",
    "--device": "give --device cpu",
}


def device_words(error: Exception) -> str | None:
    """Say in one line what torch reports of full memory, a lost rank or a missing kernel, and what to do.

    None for other errors.

    Errors of torch are told by their names, so that torch is not imported for this.
    """
    kind, text = type(error), str(error)
    if is_no_memory(error):
        return no_memory_words(text)
    if not kind.__module__.startswith("torch") and kind is not RuntimeError:
        return None
    if is_full_gpu(error):
        match = _OUT_OF_MEMORY.search(text)
        where = (
            f"cuda:{match['gpu']}: {match['asked']} more do not fit, {match['free']} of {match['total']} are free"
            if match
            else "the GPU's memory is full"
        )
        remedies = [_LESS_OF_A_GPU[flag] for flag in advisable(*_LESS_OF_A_GPU)]
        return f"{where}; {', or '.join([*remedies[:3], 'use a GPU with more'])}"
    if _SHARED_GPU in text:
        return (
            f"two processes share one GPU, and NCCL takes one for each ({text.strip().splitlines()[-1][:150]}); the "
            "MIG instances of a GPU count as one. Start one process for each whole GPU, or train on one instance alone"
        )
    if _NO_KERNEL in text:
        return (
            f"--deterministic: this GPU has no such kernel for an operation of the network ({text[:100]}…); leave the "
            f"flag out{' (with another --out)' if advisable('--out') else ''}, or choose another network"
        )
    if (kind.__name__.startswith("Dist") and kind.__name__.endswith("Error")) or any(w in text for w in _LOST_RANK):
        first = text.strip().splitlines()[0] if text.strip() else kind.__name__
        return (
            f"another rank, or the network between the ranks, is gone ({first[:200]}); look at the output of the other "
            "ranks for the first error, then run the same command again: it goes on from the last checkpoint"
        )
    return None


class Problem(NamedTuple):
    """One of several things that are wrong; a message counts them by kind.

    Attributes:
        text: where and what, without an end: "cat/07.jpg: expected an image, got 0 bytes".
        kind: what problems like it are called: "no image (.xml)"; "" where all are of one kind.
        advice: what to do about problems of this kind.
    """

    text: str
    kind: str = ""
    advice: str = ""


_EXAMPLES = 3
_KINDS_NAMED = 5
_ADVICES = 2
_MESSAGE_CHARS = 600
_LEAST_CHARS = 60


def with_advice(text: str, advice: str) -> str:
    """A message and what to do, which stands in a line of its own below several lines."""
    separator = "\n" if "\n" in text else "; "
    return f"{text}{separator}{advice}" if advice else text


def problems_text(where: str, problems: Sequence[Problem], *, what: str = "") -> str:
    """Say in one message what is wrong and what to do; arguments as of `summary`."""
    problem = summary(where, problems, what=what)
    return with_advice(problem.text, problem.advice)


def summary(where: str, problems: Sequence[Problem], *, what: str = "") -> Problem:
    """Make one problem of several: a single one as it is, several counted, with three examples and their advice.

    Args:
        where: the file, folder or flag that all of them are in; "" when each says it itself.
        what: how several are introduced; default "N problems". The number of problems of each kind follows.

    The examples are of different kinds first. At most six lines and 600 characters with the advice, unless `where` is
    very long.
    """
    before = f"{where}: " if where else ""
    if len(problems) == 1:
        only = problems[0]
        return only._replace(text=f"{before}{only.text}")
    kinds = Counter(problem.kind for problem in problems)
    # One kind more takes no more room than its number.
    shown = len(kinds) if len(kinds) == _KINDS_NAMED + 1 else _KINDS_NAMED
    counts = [f"{number} × {kind}" for kind, number in kinds.most_common(shown) if kind]
    if len(kinds) > shown:
        counts.append(f"{len(kinds) - shown} more kinds")
    several = f"{len(problems)} {plural(len(problems), 'problem')}"
    head = f"{before}{what or several}: {', '.join(counts)}".rstrip(": ")
    advices = list(dict.fromkeys(problem.advice for problem in _kinds_first(problems) if problem.advice))
    last = "; ".join(advices[:_ADVICES])
    examples = _kinds_first(problems)[:_EXAMPLES]
    room = (_MESSAGE_CHARS - len(head) - len(last) - 30) // len(examples) - 3
    lines = [head, *(f"  {_cut(problem.text, max(_LEAST_CHARS, room))}" for problem in examples)]
    if len(problems) > len(examples):
        lines.append(f"  … and {len(problems) - len(examples)} more")
    return Problem("\n".join(lines), "", last)


def _kinds_first(problems: Sequence[Problem]) -> list[Problem]:
    """The first problem of each kind, the most frequent kind first; then the others in their order."""
    first = {problem.kind: n for n, problem in reversed(list(enumerate(problems)))}
    order = [first[kind] for kind, _ in Counter(problem.kind for problem in problems).most_common()]
    firsts = set(order)
    return [problems[n] for n in (*order, *(n for n in range(len(problems)) if n not in firsts))]


def _cut(text: str, chars: int) -> str:
    """Of several lines the first, in at most `chars` characters: what is cut comes out of its middle."""
    line = text.partition("\n")[0]
    if len(line) <= chars:
        return line
    tail = (chars - 1) // 3
    return f"{line[: chars - 1 - tail]}…{line[-tail:]}"


class UnknownMemberError(ValueError):
    """A name that no member of an open set has: a loss, a record kind, an operation."""


class OtherVersionError(ValueError):
    """A stored value of another version of this project, or of a package that adds to it; it is not damaged."""


class ArtefactError(Exception):
    """An artefact is missing, damaged, foreign or unfinished.

    Attributes:
        text: what is wrong, without the advice. advice: what to do next, where other artefacts may need the same: a
            list of problems says it once.
    """

    def __init__(self, text: str = "", advice: str = "") -> None:
        super().__init__(with_advice(text, advice))
        self.text, self.advice = text, advice


class ShardError(ArtefactError):
    """A shard, the index, or the bytes of a sample."""


class CacheError(ArtefactError):
    """The teacher cache."""


class UnreachableError(CacheError):
    """Something of the cache could not be read or written now, and what is stored there may be whole."""


class RunError(ArtefactError):
    """A student run."""
