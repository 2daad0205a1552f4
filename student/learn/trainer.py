"""One student: it takes a batch and learns from it. Several of them can be fed the same batches.

Everything random in a step (drop path, dropout) is drawn from torch's generator, which is seeded anew for every
(seed, step, part of the global batch): randomness is a function of the step, so a resumed run draws what an
uninterrupted one draws, and a student trained among others what it draws alone.

Legend: B batch, C classes, H, W image.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shards.errors import RunError
from shards.rng import stream
from student.feed.answers import TeacherAnswer
from student.feed.batch import Labels
from student.learn.evaluation import teacher_stats
from student.learn.learning_rate import lr_at
from student.learn.loss import Loss, gradient_balance, student_loss
from student.learn.losses.table import LOSSES, NONE
from student.learn.network import Heads, fastest_layout, heads, set_grad_checkpointing, student_and_start
from student.learn.optimiser import Ema, clip_gradients, load_optimizer, make_optimizer, set_lr
from student.learn.process_group import ProcessGroup, no_sync
from student.learn.timm_model import Normalisation, own_errors, require_answer
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.arithmetic import arithmetic, autocast, require_deterministic
from teacher_cache.network.trial import require_logits

# The sums of a student: images, losses × images, diagnosed images, and diagnostics × diagnosed images.
_MEANS = ("loss", "base_loss", "distill_loss")
_SAMPLED = ("student_entropy", "teacher_agreement", "teacher_entropy")
_DIAGNOSE_EVERY = 4
"""Steps between diagnoses: an epoch's agreement is over a quarter of its images, at a quarter of the cost."""
_ADVICE = "lower lr, use bf16 instead of fp16, or set clip_grad, with another --out"
_PARTS = {"model": "weights or statistics", "optimizer": "the optimiser's state", "ema": "averaged weights"}


class Trainer:
    """A student with its optimiser, loss scale, weight average and the sums of its metrics.

    Attributes:
        balance: the teacher's pull at the logits over the labels' (`gradient_balance`), on this rank's first
            micro-batch of step 0; None before it, after a resume, and without a teacher.
    """

    def __init__(
        self,
        recipe: StudentRecipe,
        settings: TrainSettings,
        *,
        num_classes: int,
        steps_per_epoch: int,
        group: ProcessGroup,
        normalisation: Normalisation | None = None,
    ) -> None:
        """Build the student at its initial weights, which depend on recipe, seed and the images' normalisation alone.

        `normalisation` as of `student_and_start`; errors as of `make_student`.
        """
        self.recipe = recipe
        self.settings = settings
        self._group = group
        self._steps_per_epoch, self._num_classes = steps_per_epoch, num_classes
        device = group.device
        if settings.deterministic and device.type == "cuda":
            require_deterministic()
        core, self.start = student_and_start(recipe, num_classes, seed=settings.seed, normalisation=normalisation)
        self.core = core.to(device)
        if (layout := fastest_layout(core)) is not None:
            self.core = self.core.to(memory_format=layout)
        require_answer(
            self.core, recipe.model, image_size=recipe.image_size, num_classes=num_classes, device=torch.device(device)
        )
        if settings.grad_checkpointing:
            set_grad_checkpointing(self.core)
        # Compiled before it is wrapped: traced once, without the code of DistributedDataParallel. Among ranks torch
        # then cuts the graph at the buckets of gradients, in either order, so that they travel before the end.
        network: Any = torch.compile(self.core, dynamic=False) if settings.compile else self.core
        self.model = group.wrap(network, static_graph=settings.accumulate == 1)
        self.optimizer = make_optimizer(self.core, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.ema = Ema(self.core, recipe.ema_decay) if recipe.ema_decay > 0 else None
        loss = LOSSES.get(recipe.distill)
        self._temperature = recipe.temperature if loss is not None and loss.uses_temperature else None
        self._params = [param for param in self.core.parameters() if param.requires_grad]
        # float64 on the device: sums stay exact enough over an epoch, and no step waits for the device.
        self._interval = torch.zeros(2 + len(_MEANS) + len(_SAMPLED), dtype=torch.float64, device=device)
        self._epoch = torch.zeros_like(self._interval)
        self._grad_norm = torch.full((1,), math.nan, dtype=torch.float64, device=device)
        self.balance: float | None = None

    def feed(
        self, image_BCHW: Tensor, labels: Labels, answer: TeacherAnswer | None, *, step: int, micro: int = 0
    ) -> None:
        """Learn from a micro-batch of the step after `step` others; its last one updates the weights."""
        settings = self.settings
        last = micro == settings.accumulate - 1
        # Named by the part of the global batch, so that ranks and micro-batches can stand in for each other.
        part = self._group.world.rank * settings.accumulate + micro
        torch.manual_seed(int(stream(settings.seed, "step", step, part).words(1)[0]) >> 1)
        kind, precision = self._group.device.type, settings.precision
        kernels = arithmetic(kind, precision, deterministic=settings.deterministic)
        with contextlib.nullcontext() if last else no_sync(self.model), kernels:
            with autocast(kind, precision), own_errors(self.recipe.model, len(image_BCHW)):
                answered = heads(self.model, image_BCHW)
                require_logits(answered.all(), self._num_classes, len(image_BCHW))
            loss = student_loss(answered, labels, answer, self.recipe)
            if step == micro == 0 and answer is not None and self.recipe.distill != NONE:
                self.balance = gradient_balance(answered, labels, answer, self.recipe)
            with own_errors(self.recipe.model, len(image_BCHW)):
                self.scaler.scale(loss.total / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        if last:
            self._update(step)
        due = step % min(_DIAGNOSE_EVERY, self._steps_per_epoch) == 0 or (step + 1) % settings.log_every == 0
        diagnose = last and due
        self._count(answered, loss, answer, len(image_BCHW), diagnose=diagnose)

    def lr(self, step: int) -> float:
        """The learning rate of the optimiser step after `step` others."""
        return lr_at(self.recipe, *divmod(step, self._steps_per_epoch), self._steps_per_epoch)

    def recent_loss(self) -> float | None:
        """Mean loss of this process since the last metrics, None where there is none; waits for the device."""
        images, total = self._interval[:2].tolist()
        return total / images if images else None

    def interval_metrics(self) -> dict[str, float]:
        """Means over all ranks since the last call; RunError when the loss is no longer a number.

        "grad_norm" is that of the last step, before clipping, where that step was due for metrics.
        """
        self._epoch += self._interval
        metrics = self._means(torch.cat((self._interval, self._grad_norm)))
        self._interval.zero_()
        return metrics

    def epoch_metrics(self) -> dict[str, float]:
        """Means over all ranks since the epoch began, which is over."""
        self._epoch += self._interval
        metrics = self._means(self._epoch)
        self._epoch.zero_()
        self._interval.zero_()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on; call it between steps, on every rank: it sums over them.

        Raises:
            RunError: a loss since the last metrics, or a value of the state, is not finite. Every rank raises.
        """
        state = {
            "model": self.core.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else {},
            "interval": self._group.sum(self._interval),
            "epoch": self._group.sum(self._epoch),
        }
        self._require_finite(state)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.core.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self._group.is_main:  # the sums of all ranks; the others start from zero
            self._interval.copy_(state["interval"])
            self._epoch.copy_(state["epoch"])

    @torch.no_grad()
    def _require_finite(self, state: Mapping[str, Any]) -> None:
        """RunError, on every rank, unless losses and state are finite on all of them; reads the device once."""
        values = [("the loss", state["interval"][1]), ("the loss", state["epoch"][1])]
        values += [
            (f"{words}: {name}", value) for part, words in _PARTS.items() for name, value in _floats(state[part])
        ]
        device = self._group.device
        wrong_V = torch.stack([(~value.isfinite().all()).to(device) for _, value in values])
        if self._group.sum(wrong_V.sum(dtype=torch.float64)).item() == 0:
            return
        names = [name for (name, _), wrong in zip(values, wrong_V.tolist(), strict=True) if wrong]
        where = names[0] if names else "a value of another rank"
        raise RunError(f"student {self.recipe.model}: not finite any more: {where}; {_ADVICE}")

    def _update(self, step: int) -> None:
        set_lr(self.optimizer, self.lr(step))
        logged = (step + 1) % self.settings.log_every == 0
        if self.recipe.clip_grad > 0 or logged:
            self.scaler.unscale_(self.optimizer)
            norm = clip_gradients(self._params, self.recipe.clip_grad)
            if logged:
                self._grad_norm.copy_(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.core)

    @torch.no_grad()
    def _count(self, answered: Heads, loss: Loss, answer: TeacherAnswer | None, num: int, *, diagnose: bool) -> None:
        """Add a micro-batch to the sums; what costs more than the losses only where it is due."""
        parts = torch.stack([loss.total.detach(), loss.base, loss.distill]).double()
        self._interval[0] += num
        self._interval[1:4] += parts * num
        if diagnose:
            stats = teacher_stats(answered, answer, self._temperature)
            nothing = torch.full((), float("nan"), device=parts.device)
            self._interval[4] += num
            self._interval[5:] += torch.stack([stats.get(name, nothing) for name in _SAMPLED]).double() * num

    def _means(self, sums: Tensor) -> dict[str, float]:
        images, *rest = self._group.sum(sums).tolist()
        diagnosed, sampled = rest[len(_MEANS)], rest[len(_MEANS) + 1 : len(self._interval) - 1]
        means = {name: value / images for name, value in zip(_MEANS, rest, strict=False) if images}
        means |= {name: value / diagnosed for name, value in zip(_SAMPLED, sampled, strict=True) if diagnosed}
        if images and not math.isfinite(means["loss"]):
            raise RunError(
                f"student {self.recipe.model}: the loss is {means['loss']}, expected a finite number; {_ADVICE}"
            )
        if len(sums) > len(self._interval):
            means["grad_norm"] = rest[-1] / self._group.world.size  # the same on every rank
        return {name: value for name, value in means.items() if math.isfinite(value)}


def _floats(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors of a nested state, each with its name."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _floats(value, f"{name}.{key}" if name else str(key))
