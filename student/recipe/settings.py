"""Settings of how a run is executed: what is not part of a student's recipe."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from shards.values import JsonValue, later

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings(JsonValue):
    """Settings shared by all students of one pass.

    The first group decides numbers and is part of what a checkpoint belongs to; the second may change on resume.

    Attributes:
        seed: of the initial weights, the order of the epochs and the drop path.
        precision: of the forward pass; losses and optimiser are float32. "fp16" scales the loss; "tf32" differs
            from "fp32" on a GPU only.
        accumulate: micro-batches per optimiser step and rank.
        compile: run the model through torch.compile.
        deterministic: on a GPU compute with kernels that round alike at every run: slower, the same bits.
        views_used: cycle through the first so many views; None takes all of the cache, or never repeats without one.
        workers, prefetch: loader processes per rank (0 renders in the main process) and batches each prepares ahead.
        log_every: steps between step metrics. checkpoint_every: steps between checkpoints within an epoch (0: only at
            its end). eval_every: epochs between evaluations; the last epoch is always evaluated.
        device: "cpu" or "cuda".
        grad_checkpointing: keep little of each forward and compute it again in the backward: less memory, the same
            numbers, about a third more time.
        scratch: a folder on a local disk for the records of the views in use; "" is the system's (TMPDIR).
        threads: of torch in each rank on a CPU; another number rounds otherwise. 0: as when the run began; a new run
            takes those that the workers leave, and keeps them.
    """

    seed: int = 0
    precision: Precision = "fp32"
    accumulate: int = 1
    compile: bool = False
    views_used: int | None = None
    deterministic: bool = later(False)

    workers: int = 0
    prefetch: int = 2
    log_every: int = 50
    checkpoint_every: int = 0
    eval_every: int = 1
    device: str = "cpu"
    scratch: str = later("")
    grad_checkpointing: bool = later(False)
    threads: int = later(0)

    def __post_init__(self) -> None:
        """Check every field; ValueError names field, value and range."""
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision: expected one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        for name, low in (
            ("accumulate", 1),
            ("workers", 0),
            ("prefetch", 1),
            ("log_every", 1),
            ("checkpoint_every", 0),
            ("eval_every", 1),
            ("threads", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected an integer of at least {low}, got {getattr(self, name)!r}")
        if self.views_used is not None and self.views_used < 1:
            raise ValueError(f"views_used: expected at least 1, got {self.views_used}")

    def identity(self) -> dict[str, Any]:
        """The settings that decide numbers, as JSON types."""
        names = ("seed", "precision", "accumulate", "compile", *["deterministic"] * self.deterministic)
        return {name: getattr(self, name) for name in names}
