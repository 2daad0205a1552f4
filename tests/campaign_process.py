"""Runs one command for a trial of `tests.campaign`, in a process of its own, and says how it ended.

`command` takes a fresh Python process: what differs from process to process, such as the seeds of hash maps, must not
show in a result. It gets its command after its imports, so that kills hit the work. `light` forks the campaign instead,
which costs no imports: for refusals, for what undisturbed commands give, and for runs on the way to a compared result.

Whatever is run, a trial fails with `TrialError` where it hangs, leaves a process behind or a file in TMPDIR or in
/dev/shm, ends in a traceback, a "defect" or an unknown exit code, prints what a terminal would obey, or takes more than
`MOST_BYTES` of memory.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import student.commands.ablate
import student.commands.export
import student.commands.predict
import student.commands.report
import student.commands.train_student
import student.run.loop  # noqa: F401 - imported once, here, for all commands
from cli import cli
from shards.errors import ArtefactError
from tests.damage import obeyed
from tests.poison import poisoned

LIMIT_S = 600.0
IDLE_S = 90.0
"""A command that has not ended hangs after `LIMIT_S`, or when nothing of it has used a processor for `IDLE_S`."""
MOST_BYTES = 2 << 30
_CODES = (0, 1, 2, 75, 130)
_MESSAGE_CHARS = 600


class TrialError(Exception):
    """What a trial found: lost, silent, hanging or unclean, and how."""


class Ended(NamedTuple):
    """How a command ended; `code` is None when it was killed."""

    code: int | None
    said: str


def command(
    words: Sequence[str],
    folder: Path,
    *,
    fresh: bool = True,
    kill_after_s: float = 0.0,
    interrupts_s: Sequence[float] = (),
    limits: dict[int, int] | None = None,
    environ: dict[str, str] | None = None,
    fault: tuple[str, int, float] | None = None,
) -> Ended:
    """Run a command in `folder`, in a process with a process group of its own.

    Args:
        fresh: a new Python process; else a fork of this one.
        kill_after_s: kill its main process then; 0: never. interrupts_s: press Ctrl-C at these seconds.
        limits: of the process's resources; of RLIMIT_AS beyond what it has by then.
        environ: variables beside those of this process.
        fault: a number that goes wrong (`poisoned`).
    """
    environ = {"TMPDIR": str(_temporary(folder)), **(environ or {})}
    order = Order([str(word) for word in words], str(folder), limits or {}, environ, fault)
    out, shared = _output(folder), _shared()
    if fresh:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()  # its imports are done
        child.stdin.write(json.dumps(order).encode())
        child.stdin.close()
        child.stdout.close()
        pid, poll = child.pid, child.poll
    else:
        pid, poll = _fork(order, order.run)
    code, killed = _watched(pid, poll, words, kill_after_s, interrupts_s)
    _require_nothing_left(folder, shared, words)
    return _ended(words, out, code, killed, bool(limits))


def light(words: Sequence[str], folder: Path) -> Ended:
    """Run a command in a fork of this process: without imports, and with the seeds of this process's hash maps."""
    return command(words, folder, fresh=False)


def forked(call: Callable[[], object], words: Sequence[str], folder: Path) -> Ended:
    """Call a function in a fork of this process; a ValueError of it ends with 2, an artefact's error with 1."""
    out = _output(folder)
    pid, poll = _fork(Order([*words], str(folder), {}, {}, None), call)
    return _ended(words, out, *_watched(pid, poll, words, 0.0, ()), False)


class Order(NamedTuple):
    """What a process is to run, and how."""

    words: list[str]
    folder: str
    limits: dict[int, int]
    environ: dict[str, str]
    fault: tuple[str, int, float] | None

    def run(self) -> None:
        """Run the command; it ends with SystemExit."""
        with poisoned(*self.fault) if self.fault else contextlib.nullcontext():
            cli.main(self.words, prog_name="cli.py")


def _fork(order: Order, call: Callable[[], object]) -> tuple[int, Callable[[], int | None]]:
    """A child that calls the function, and how its exit code is asked for."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        _run(order, call)
    with contextlib.suppress(PermissionError, ProcessLookupError):  # it has done so itself, or has ended
        os.setpgid(pid, pid)

    def poll() -> int | None:
        gone, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if gone else None

    return pid, poll


def _output(folder: Path) -> Path:
    out = folder / _SAID
    out.unlink(missing_ok=True)
    out.touch()
    return out


def _temporary(folder: Path) -> Path:
    """The folder of temporary files of what is run in a folder: short, as sockets have short names."""
    made = folder / "tmp"
    made.mkdir(exist_ok=True)
    return made


def _shared() -> set[str]:
    """The names in /dev/shm: shared memory and semaphores, of all processes of this machine."""
    return {path.name for path in Path("/dev/shm").glob("*")}


def _require_nothing_left(folder: Path, shared_before: set[str], words: Sequence[str]) -> None:
    """Require that what a process had in TMPDIR and /dev/shm went with it; another process's goes within a second.

    Only the folder by which processes find each other's tables stays: locks, and links that lead nowhere.
    """
    files = [path for path in _temporary(folder).rglob("*") if path.is_symlink() or not path.is_dir()]
    left = sorted(path.name for path in files if path.exists() and path.suffix != ".lock")
    until = time.monotonic() + 1
    while (named := sorted(_shared() - shared_before)) and time.monotonic() < until:
        time.sleep(0.05)
    if left or named:
        raise TrialError(f"unclean: {' '.join(words)}: left {left[:5]} in TMPDIR, {named[:5]} in /dev/shm")


def _watched(
    pid: int, poll: Callable[[], int | None], words: Sequence[str], kill_after_s: float, interrupts_s: Sequence[float]
) -> tuple[int, bool]:
    """Wait for a process, signal it when it is time to, and require that its group ends with it."""
    began = time.monotonic()
    signals = sorted((after_s, signal.SIGINT) for after_s in interrupts_s)
    signals += [(kill_after_s, signal.SIGKILL)] if kill_after_s else []
    killed, used_s, used_at_s = False, -1.0, 0.0
    while (code := poll()) is None:
        elapsed_s = time.monotonic() - began
        if signals and elapsed_s > signals[0][0]:
            number = signals.pop(0)[1]
            killed = number == signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number) if killed else os.killpg(pid, number)
        if elapsed_s > used_at_s + IDLE_S / 3 and (now_s := _processor_s(pid)) > used_s:
            used_s, used_at_s = now_s, elapsed_s
        if elapsed_s > min(LIMIT_S, used_at_s + IDLE_S):
            os.killpg(pid, signal.SIGKILL)
            raise TrialError(f"hanging: {' '.join(words)}: no end after {elapsed_s:.0f} s, {used_s:.2f} of a processor")
        if _memory_bytes(pid) > MOST_BYTES:  # now, before it has taken all that this machine has
            os.killpg(pid, signal.SIGKILL)
            raise TrialError(f"unclean: {' '.join(words)}: more than {MOST_BYTES >> 20} MiB of memory")
        time.sleep(0.005)
    _require_nobody_left(pid, words)
    return code, killed


def _memory_bytes(pid: int) -> int:
    """The memory that a process has now; 0 when it has ended."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _address_space_bytes() -> int:
    """The addresses that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _processor_s(group: int) -> float:
    """Seconds of processor time that the living processes of a group have used, and their children that ended."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _ended(words: Sequence[str], out: Path, code: int, killed: bool, limited: bool) -> Ended:
    """How it ended; `TrialError` where no command may end so. A limit may leave no room for words."""
    said = out.read_text(errors="replace")
    if killed and code == -signal.SIGKILL:
        return Ended(None, said)
    said, _, peak = said.rpartition(_PEAK) if _PEAK in said else (said, "", "0")  # a signal may end it at once
    where = f"unclean: {' '.join(words)}: exit code {code}"
    if code not in _CODES or "Traceback" in said or "defect" in said or "Exception ignored" in said:
        raise TrialError(f"{where}: {said[-600:]}")
    if code and not said.strip() and not limited:
        raise TrialError(f"{where}, without a word")
    if obeyed(said):
        raise TrialError(f"{where}: a terminal would obey {obeyed(said)[:9]!r}: {said[-600:]!r}")
    if code in (1, 2) and len(said[said.lower().rfind("error: ") :]) > _MESSAGE_CHARS + 1:
        raise TrialError(f"{where}: a message of more than {_MESSAGE_CHARS} characters: {said}")
    if int(peak) > MOST_BYTES:
        raise TrialError(f"{where}: {int(peak) >> 20} MiB of memory")
    return Ended(code, said)


_SAID = "said.txt"
_PEAK = "\npeak memory in bytes: "


def _child() -> None:
    """Run the command that standard input gives."""
    sys.stdout.write("\n")
    sys.stdout.flush()
    words, folder, limits, environ, fault = json.load(sys.stdin)
    order = Order(words, folder, {int(kind): value for kind, value in limits.items()}, environ, fault)
    _run(order, order.run)


def _run(order: Order, call: Callable[[], object]) -> None:
    """Call the function in the folder, with its output in a file; the process ends here."""
    os.chdir(order.folder)
    peak = os.open(_SAID, os.O_WRONLY | os.O_APPEND)
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, _SAID, os.O_WRONLY | os.O_APPEND)):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.dup2(1, 2)
    os.environ.update(order.environ)
    tempfile.tempdir = None  # a fork of the campaign may have looked for the folder before
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the campaign with & lets it be ignored
    code = 1
    try:
        for kind, value in order.limits.items():
            value += _address_space_bytes() if kind == resource.RLIMIT_AS else 0
            resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
        call()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except (ValueError, ArtefactError) as error:  # of a function that is no command
        sys.stderr.write(f"error: {error}\n")
        code = 2 if isinstance(error, ValueError) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        os.write(peak, f"{_PEAK}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}".encode())
        os._exit(code)


def _require_nobody_left(group: int, words: Sequence[str]) -> None:
    """Workers end with their main process: within a moment the group is empty."""
    until = time.monotonic() + 15
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    raise TrialError(f"unclean: {' '.join(words)}: processes of it outlived it")


if __name__ == "__main__":
    _child()
