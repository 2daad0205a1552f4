"""The files of a run's directory: the only place that names them, and how JSON is read from and written to them.

config.json                 the resolved configuration
metrics.jsonl               {"kind": "step" | "epoch", "step", "epoch", metrics …}, one object per line
tensorboard/                the same numbers as events
checkpoints/                see student.run.checkpoint
weights.safetensors, weights_ema.safetensors, model_card.md; of a teacher also weights_best.safetensors
summary.json                what the run came to; written last, so it is there only when the run has finished
.lock                       held by the process that trains here
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from shards.atomic import atomic_file
from shards.documents import NotRegularError, checked, open_regular, parse_json, read_document
from shards.errors import RunError, system_words, unreadable_now
from shards.own_folder import RUN_CONFIG, FolderKind, is_run_folder, named
from teacher_cache.network.weights_metadata import BEST_WEIGHTS

T = TypeVar("T")
MOST_METRICS_BYTES = 1 << 32
_MOST_LINE_BYTES = 1 << 20
_ADVICE = "restore the file or run again"


class RunFiles:
    """Paths of the files of one run; nothing is touched by naming them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.config = out / RUN_CONFIG  # a directory that has it is a run
        self.metrics = out / "metrics.jsonl"
        self.tensorboard = out / "tensorboard"
        self.checkpoints = out / "checkpoints"
        self.weights = out / "weights.safetensors"
        self.ema_weights = out / "weights_ema.safetensors"
        self.best_weights = out / BEST_WEIGHTS
        self.model_card = out / "model_card.md"
        self.summary = out / "summary.json"  # written last
        self.lock = out / ".lock"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; RunError naming the file if it is something else."""
    return read_schema(path, dict[str, Any])


def read_schema(path: Path, schema: type[T]) -> T:
    """A JSON file that must have the types of a schema; RunError naming file and field if it is something else."""
    try:
        return read_document(path, schema, error=RunError, advice=_ADVICE)
    except FileNotFoundError:
        raise RunError(f"{path}: expected a JSON object, found no file; {_ADVICE}") from None
    except OSError as error:
        if unreadable_now(error, or_disk=True):
            raise RunError(system_words(error, path)) from error
        raise RunError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error


class MetricLine(msgspec.Struct):
    """What every line of metrics says; the numbers beside it are named by whoever wrote them."""

    kind: str
    step: Annotated[int, msgspec.Meta(ge=0, le=10**9)]
    epoch: Annotated[int, msgspec.Meta(ge=0, le=10**9)]
    val: dict[str, Any] | None = None


def best_epoch(top1_by_epoch: Iterable[tuple[int, float]]) -> tuple[int, float]:
    """Return the epoch (from 0) with the highest validated top-1, the last of several, and that; (-1, -1) for none.

    Args:
        top1_by_epoch: epochs and their top-1 in percent, in any order.
    """
    return max(top1_by_epoch, key=lambda pair: (pair[1], pair[0]), default=(-1, -1.0))


def metric_line(line: bytes, where: Path | str) -> MetricLine:
    """Parse the head of a line of metrics; RunError saying where, expected and got."""
    advice = "remove the line to go on with the rest"
    return checked(
        parse_json(line, where, error=RunError, advice=advice), MetricLine, where, error=RunError, advice=advice
    )


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and bytes of each complete line of metrics; one at a time, as a run may write gigabytes.

    A killed run may leave the last line torn: it is left out. No file has no lines.

    Raises:
        RunError: a line that is longer than any of ours. OSError: the file cannot be read.
    """
    try:
        opened = open_regular(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise
        return
    with opened as file:
        if (num_bytes := os.fstat(file.fileno()).st_size) > MOST_METRICS_BYTES:
            raise NotRegularError(None, f"expected at most {MOST_METRICS_BYTES} bytes, got {num_bytes}", str(path))
        # readline ends at "\n" alone: str.splitlines also cuts at characters that JSON strings may hold.
        for number in itertools.count(1):
            line = file.readline(_MOST_LINE_BYTES + 1)
            if len(line) > _MOST_LINE_BYTES:
                raise RunError(
                    f"{path}, line {number}: expected at most {_MOST_LINE_BYTES:,} bytes, got more; is it a file of "
                    "metrics? Restore it, or remove the line to go on with the rest"
                )
            if not line.endswith(b"\n"):
                return
            yield number, line[:-1]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; RunError when the disk refuses."""
    try:
        with atomic_file(path) as file:
            file.write(json.dumps(value, indent=1).encode() + b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); make room, or choose another --out") from error


RUN_FOLDER = FolderKind(
    what="a run",
    command="train-student or train-teacher",
    is_ours=is_run_folder,
    begun=named(".lock", "checkpoints", ".config.json.*"),
    utf8=True,
)
"""The directory of a run; what it holds before its configuration is there: `RunLog`."""
