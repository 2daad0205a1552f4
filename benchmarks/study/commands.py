"""Runs commands of this project one after the other, shown as a user would type them, and keeps what each one took.

`times.jsonl` in the work folder has a line per command: its stage, wall and processor seconds, and its exit code. A
command is told to stop (SIGTERM, which saves) when the study's time is up, or when the study itself is told to.
"""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent.parent
TIMES = "times.jsonl"
STOPPED = 75
"""Exit code of a study whose time was up; the same command goes on."""


class Commands:
    """Runs commands until `minutes` have passed; a context manager that hands a SIGTERM on."""

    def __init__(self, work: Path, minutes: float | None = None) -> None:
        """Keep times in `work`; None: there is no end."""
        self._times = work / TIMES
        self._until = None if minutes is None else time.monotonic() + 60 * minutes
        self._child: subprocess.Popen[str] | None = None
        self._told = False

    def __enter__(self) -> Self:
        """Listen to SIGTERM."""
        self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Listen no more."""
        signal.signal(signal.SIGTERM, self._before)

    def run(self, stage: str, *arguments: str | Path) -> None:
        """Run `cli.py ARGUMENTS`; SystemExit with its exit code if that is not 0, with STOPPED when the time is up."""
        words = [str(argument) for argument in arguments]
        self.require_time()
        print(f"\n$ python cli.py {shlex.join(words)}", flush=True)
        before, began = _cpu(), time.monotonic()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._child = subprocess.Popen([sys.executable, str(ROOT / "cli.py"), *words], text=True, env=environment)
        try:
            code = self._wait(self._child)
        finally:
            self._child = None
        line = {"stage": stage, "wall_s": time.monotonic() - began, "cpu_s": _cpu() - before, "exit": code}
        with self._times.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if code:
            sys.exit(code)

    def require_time(self) -> None:
        """SystemExit with STOPPED when the time is up."""
        if self._told or (self._until is not None and time.monotonic() >= self._until):
            print("\nthe time is up; what has finished is kept, the same command goes on", flush=True)
            sys.exit(STOPPED)

    def _wait(self, child: "subprocess.Popen[str]") -> int:
        left = None if self._until is None else max(0.0, self._until - time.monotonic())
        try:
            return child.wait(left)
        except subprocess.TimeoutExpired:
            child.terminate()
            return child.wait()

    def _stop(self, *_: object) -> None:
        self._told = True
        if self._child is not None:
            self._child.terminate()


def read_times(work: Path) -> dict[str, dict[str, float]]:
    """Wall and processor seconds of each stage, over all tries."""
    times: dict[str, dict[str, float]] = {}
    path = work / TIMES
    lines: Sequence[dict[str, Any]] = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    )
    for line in lines:
        stage = times.setdefault(line["stage"], {"wall_s": 0.0, "cpu_s": 0.0})
        for key in stage:
            stage[key] += line[key]
    return times


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
