"""A run's directory: who is writing it, its configuration, metrics as lines and as TensorBoard events, the summary.

    config.json         the resolved configuration
    metrics.jsonl       {"kind": "step" | "epoch", "step", "epoch", metrics …}, one object per line
    tensorboard/        the same numbers as events
    checkpoints/        see student.checkpoint
    summary.json        what the run came to; written last, so it is there only when the run has finished

A resumed run drops the lines after the step it goes on from, so the file reads as if nothing had happened.
"""

import fcntl
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch.utils.tensorboard import SummaryWriter

from shards.atomic import atomic_file
from shards.errors import RunError


class RunLog:
    """The writer of one run's directory; a context manager that holds the directory's lock."""

    def __init__(self, out: Path) -> None:
        """Take the directory; it is made on entry."""
        self.out = out
        self._lock: IO[str] | None = None
        self._lines: IO[bytes] | None = None
        self._events: SummaryWriter | None = None

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are."""
        return self.out / "checkpoints"

    def __enter__(self) -> "RunLog":
        """Make and lock the directory; RunError when another process trains in it or it cannot be made."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (self.out / ".lock").open("w")
        except OSError as error:
            raise RunError(f"{self.out}: cannot be made or written ({error}); choose another --out") from error
        try:
            # A POSIX lock belongs to this process: a forked worker that outlives a killed run does not hold it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunError(
                f"{self.out}: another process is training here; wait for it, stop it, or choose another --out"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        """Flush, close, unlock."""
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def summary(self) -> Path:
        """The file that says that the run has finished."""
        return self.out / "summary.json"

    def begin(self, config: Mapping[str, Any], *, step: int, finished: bool = False) -> None:
        """Write the configuration and open the metrics so that they continue after `step` (0: empty).

        A summary stays only when the run has `finished`.
        """
        if finished and self.summary.is_file():
            return
        self.summary.unlink(missing_ok=True)
        write_json(self.out / "config.json", config)
        path = self.out / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step] if step else []
        with atomic_file(path) as file:
            file.writelines(line + b"\n" for line in kept)
        self._lines = path.open("ab")
        self._events = SummaryWriter(str(self.out / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, *, step: int, epoch: int, metrics: Mapping[str, float], **groups: Any) -> None:
        """One line of metrics; numbers that are not finite are left out, as JSON has none. RunError when it cannot."""
        assert self._lines is not None and self._events is not None, "write before begin"
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = {"kind": kind, "step": step, "epoch": epoch, **finite, **groups}
        try:
            self._lines.write(json.dumps(line).encode() + b"\n")
            self._lines.flush()
            for name, value in finite.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)
            for name, value in (groups.get("val") or {}).items():
                self._events.add_scalar(f"val/{name}", value, step)
        except OSError as error:
            raise RunError(
                f"{self.out}: metrics of step {step} could not be written ({error}); make room and run the same "
                "command again: it resumes from its last checkpoint"
            ) from error

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run is complete."""
        write_json(self.summary, summary)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run atomically."""
        with atomic_file(self.out / name) as file:
            file.write(text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; RunError when the disk refuses."""
    try:
        with atomic_file(path) as file:
            file.write(json.dumps(value, indent=1).encode() + b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); make room, or choose another --out") from error


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that were written completely: a killed run may leave the last one torn."""
    if not path.is_file():
        return []
    return path.read_bytes().split(b"\n")[:-1]
