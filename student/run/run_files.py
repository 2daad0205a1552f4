"""The files of a run's directory: the only place that names them, and how JSON is read from and written to them.

config.json                 the resolved configuration
metrics.jsonl               {"kind": "step" | "epoch", "step", "epoch", metrics …}, one object per line
tensorboard/                the same numbers as events
checkpoints/                see student.run.checkpoint
weights.safetensors, weights_ema.safetensors, model_card.md
summary.json                what the run came to; written last, so it is there only when the run has finished
.lock                       held by the process that trains here
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.atomic import atomic_file
from shards.errors import RunError
from shards.own_folder import FolderKind, named


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths of the files of one run; nothing is touched by naming them."""

    out: Path

    @property
    def config(self) -> Path:
        """The configuration; a directory that has it is a run."""
        return self.out / "config.json"

    @property
    def metrics(self) -> Path:
        """The lines of metrics."""
        return self.out / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard events."""
        return self.out / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.out / "checkpoints"

    @property
    def weights(self) -> Path:
        """The student's weights, for timm."""
        return self.out / "weights.safetensors"

    @property
    def ema_weights(self) -> Path:
        """The averaged weights, where the recipe has them."""
        return self.out / "weights_ema.safetensors"

    @property
    def model_card(self) -> Path:
        """What the weights are, as Markdown."""
        return self.out / "model_card.md"

    @property
    def summary(self) -> Path:
        """The file that says that the run has finished."""
        return self.out / "summary.json"

    @property
    def lock(self) -> Path:
        """The file that the training process holds."""
        return self.out / ".lock"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; RunError naming the file if it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: expected a JSON object, found no file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: expected a JSON object, got {error}; restore the file or run again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; RunError when the disk refuses."""
    try:
        with atomic_file(path) as file:
            file.write(json.dumps(value, indent=1).encode() + b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); make room, or choose another --out") from error


def _is_run(folder: Path) -> bool:
    """Whether its configuration is one of ours: others keep a config.json as well."""
    try:
        return {"recipe", "train"} <= set(read_json(RunFiles(folder).config))
    except (RunError, OSError):
        return False


RUN_FOLDER = FolderKind(
    what="a run", command="train-student", is_ours=_is_run, begun=named(".lock", "checkpoints", ".config.json.*")
)
"""The directory of a run; what it holds before its configuration is there: `RunLog`."""
