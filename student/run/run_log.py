"""Write the directory of a run: lock, configuration, metrics as lines and as TensorBoard events, summary.

A resumed run drops the lines after the step it goes on from, so the file reads as if nothing had happened.
"""

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from torch.utils.tensorboard import SummaryWriter

from shards.atomic import atomic_file
from shards.errors import RunError
from shards.locks import locked
from student.run.run_files import MetricLine, RunFiles, best_epoch, metric_line, whole_lines, write_json


class RunLog:
    """The writer of one run's directory; a context manager that holds the directory's lock."""

    def __init__(self, out: Path) -> None:
        """Take the directory; it is made on entry."""
        self.files = RunFiles(out)
        self._held = ExitStack()
        self._lines: IO[bytes] | None = None
        self._events: SummaryWriter | None = None

    def __enter__(self) -> "RunLog":
        """Make and lock the directory; RunError when another process trains in it or it cannot be made."""
        try:
            self.files.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.files.out}: cannot be made or written ({error}); choose another --out") from error
        if not self._held.enter_context(locked(self.files.lock)):
            raise RunError(
                f"{self.files.out}: another process is training here; wait for it, stop it, or choose another --out"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        self._held.close()

    def begin(self, config: Mapping[str, Any], *, step: int, finished: bool = False) -> None:
        """Write the configuration and open the metrics so that they continue after `step` (0: empty).

        A summary stays only when the run has `finished`.
        """
        if finished and self.files.summary.is_file():
            return
        self.files.summary.unlink(missing_ok=True)
        write_json(self.files.config, config)
        path = self.files.metrics
        with atomic_file(path) as file:
            for _, line in whole_lines(path) if step else ():
                if metric_line(line, path).step <= step:
                    file.write(line + b"\n")
        self._lines = path.open("ab")
        self._events = SummaryWriter(str(self.files.tensorboard), purge_step=step + 1 if step else None)

    def epoch_values(self, step: int) -> dict[str, float] | None:
        """The validation in the line of the epoch that ends after `step`; None where no such line was written."""
        ends = (line for line in self._stored() if line.kind == "epoch" and line.step == step)
        last = next(iter(deque(ends, maxlen=1)), None)
        return None if last is None else last.val or {}

    def best_epoch(self) -> tuple[int, float]:
        """The best epoch and its validated top-1, as `student.run.run_files.best_epoch` says."""
        validated = ((line.epoch, line.val) for line in self._stored() if line.kind == "epoch" and line.val)
        return best_epoch((epoch, float(val["top1"])) for epoch, val in validated if "top1" in val)

    def _stored(self) -> Iterator[MetricLine]:
        return (metric_line(line, self.files.metrics) for _, line in whole_lines(self.files.metrics))

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
                f"{self.files.out}: metrics of step {step} could not be written ({error}); make room and run the same "
                "command again: it resumes from its last checkpoint"
            ) from error

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run is complete."""
        write_json(self.files.summary, summary)

    def write_card(self, text: str) -> None:
        """Write the model card atomically."""
        with atomic_file(self.files.model_card) as file:
            file.write(text.encode())
