"""Numbers that go wrong at a step: a weight, the loss, the teacher's answer or a state becomes NaN or Inf.

`poisoned` patches `Trainer.feed` for the length of its block, as a spike of the gradient or a broken record would act.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from student.feed.answers import TeacherAnswer
from student.feed.batch import Labels
from student.learn.trainer import Trainer


def _into(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] = value


def _weight(trainer: Trainer, value: float) -> None:
    _into(next(trainer.core.parameters()), value)


def _loss(trainer: Trainer, value: float) -> None:
    _into(trainer._interval[1:2], value)  # of one step alone: the weights stay good


def _optimiser(trainer: Trainer, value: float) -> None:
    state = trainer.optimizer.state[next(trainer.core.parameters())]
    _into(state["exp_avg_sq"], value)  # an Inf here stops the weight and is in no loss


def _average(trainer: Trainer, value: float) -> None:
    assert trainer.ema is not None
    _into(next(trainer.ema.model.parameters()), value)


def _statistic(trainer: Trainer, value: float) -> None:
    running = next((b for name, b in trainer.core.named_buffers() if name.endswith("running_var")), None)
    assert running is not None, "a student with BatchNorm"
    _into(running, value)  # training does not read it: no loss shows it


AFTER: dict[str, Callable[[Trainer, float], None]] = {
    "weight": _weight,
    "loss": _loss,
    "optimiser": _optimiser,
    "average": _average,
}
KINDS = (*AFTER, "answer")
"""What can be poisoned in every student; "statistic" needs one with BatchNorm."""


def _answering(answer: TeacherAnswer, value: float) -> TeacherAnswer:
    return TeacherAnswer(None, lambda tau: torch.full_like(answer.log_prob(tau), value))


@contextmanager
def poisoned(kind: str, step: int, value: float, *, lr: float | None = None) -> Iterator[None]:
    """Inside the block `kind` becomes `value` after `step` steps, in students of this `lr` (None: all)."""
    plain = Trainer.feed

    def feed(
        self: Trainer,
        image_BCHW: torch.Tensor,
        labels: Labels,
        answer: TeacherAnswer | None,
        *,
        step: int,
        micro: int = 0,
        _at: int = step,
    ) -> None:
        hit = step == _at and lr in (None, self.recipe.lr)
        if hit and kind == "answer":
            assert answer is not None, "a student with a teacher"
            answer = _answering(answer, value)
        plain(self, image_BCHW, labels, answer, step=step, micro=micro)
        if hit and kind != "answer":
            {**AFTER, "statistic": _statistic}[kind](self, value)

    Trainer.feed = feed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.feed = plain  # type: ignore[method-assign]


def not_finite(checkpoints: Path) -> list[str]:
    """The names of the checkpoints in a folder that hold a number which is not finite in what a later step reads."""

    def wrong(value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return value.is_floating_point() and not bool(value.isfinite().all())
        return any(wrong(inner) for inner in value.values()) if isinstance(value, dict) else False

    paths = sorted(checkpoints.glob("*.pt"))
    states = {path.name: torch.load(path, weights_only=True)["trainer"] for path in paths}
    parts = ("model", "optimizer", "ema")
    return [
        name
        for name, state in states.items()
        if any(wrong(state[part]) for part in parts) or wrong(state["interval"][:4]) or wrong(state["epoch"][:4])
    ]
