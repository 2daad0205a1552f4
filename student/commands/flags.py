"""Flags that the training commands share, as frozen values."""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from shards.commands.flags import (
    CACHE,
    COUNT,
    FROM_ZERO,
    PATH,
    Decorator,
    Number,
    bundled,
    device_option,
    flag,
    given_flag,
    options,
    precision_option,
    refuse_ignored,
    shared,
    suited_workers,
    workers_option,
)
from shards.console import say
from shards.errors import RunError
from shards.names import as_path, short
from shards.text.figures import count
from shards.world import world_from_env
from student.learn.losses.table import distillations
from student.recipe.combinations import COMBINATIONS
from teacher_cache.commands.flags import announced_precision, deterministic_option
from teacher_cache.store.place import require_distinct

if TYPE_CHECKING:
    from torch import nn

    from shards.index.shard_index import ShardIndex
    from student.recipe.choice import Changed, RecipeChoice
    from student.recipe.settings import Precision, TrainSettings
    from student.recipe.student_recipe import StudentRecipe
    from student.run.export import ExportInfo
    from teacher_cache.store.cache import TeacherCache
    from teacher_cache.store.header import Header


_EVALUATIONS = 20  # of a run on a small set
_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentFlags:
    """Which student, and what the user changes in its recipe."""

    model: str | None = flag(
        "--model",
        help="Network to train; see `models`. Default: deit_tiny_distilled_patch16_224, below 50,000 images small_cnn.",
    )
    pretrained: str | None = flag(
        "--pretrained", metavar="NAME|FILE", help="Begin with published weights (a timm name with tag), or a file."
    )
    recipe: str | None = flag("--recipe", help="Student recipe; default: the model's own. See `recipes`.")
    stage: int = flag("--stage", default=0, type=FROM_ZERO, help="0 trains from scratch, 1 fine-tunes.")
    epochs: int | None = flag(
        "--epochs",
        type=COUNT,
        help="Passes over the training images; default: the recipe's; below 50,000 images by their number.",
    )
    batch_size: int | None = flag(
        "--batch-size", type=COUNT, help="Images per step, over all processes; default: the recipe's."
    )
    config: Path | None = flag("--config", type=PATH, help="A TOML file of recipe fields.")
    sets: tuple[str, ...] = flag(
        "--set", multiple=True, metavar="KEY=VALUE", help="Any recipe field; view.FIELD for views."
    )

    def choice(self, **flags: Any) -> "RecipeChoice":
        """Return what the user asks for: a file, then --set, then flags.

        Raises:
            ValueError: one field in two ways, a model that neither the table of students nor timm can know.
        """
        from student.recipe.choice import RecipeChoice
        from student.recipe.overrides import parse_sets, read_toml
        from student.recipe.zoo import model_entry
        from teacher_cache.network.teacher_name import require_known

        model, start = self._start()
        named = flags | start | {"epochs": self.epochs, "batch_size": self.batch_size}
        typed = {name: value for name, value in named.items() if value is not None}
        sets = parse_sets(self.sets)
        if twice := sorted(typed.keys() & sets.keys()):
            raise ValueError(f"--set {twice[0]}=…: would be ignored: there is a flag for it as well; drop one of them")
        if self.recipe is not None and given_flag("stage"):
            raise ValueError("--stage: would be ignored: --recipe names the recipe of a stage; drop one of them")
        if model and model_entry(model) is None:
            require_known("--model", model)
        in_file = read_toml(self.config) if self.config else {}
        return RecipeChoice(
            model=model,
            name=self.recipe,
            stage=self.stage,
            fields=in_file | sets | typed,
            file=str(self.config or ""),
            in_file=frozenset(in_file.keys() - sets.keys() - typed.keys()),
        )

    def _start(self) -> tuple[str, dict[str, Any]]:
        """The model, "" where none is named, and the recipe fields of weights to begin with.

        Raises:
            ValueError: --pretrained is no name that can be. ArtefactError: a missing or damaged file.
        """
        from student.recipe.student_recipe import PUBLISHED
        from teacher_cache.network.teacher_name import require_known
        from teacher_cache.network.weights_metadata import require_weights, trained_as

        if self.pretrained is None:
            return self.model or "", {}
        path = as_path("--pretrained", self.pretrained)
        if path.exists() or path.suffix in _WEIGHT_FILES:
            require_weights("--pretrained", path)
            stored = trained_as(path)
            if not (model := self.model or (stored.model if stored else "")):
                raise ValueError(f"--pretrained {path}: the file does not name its network; give --model as well")
            return model, {"finetune": True, "init_weights": str(path)}
        require_known("--pretrained", self.pretrained)
        return self.model or self.pretrained, {"finetune": True, "init_weights": f"{PUBLISHED}:{self.pretrained}"}


student_options = bundled(StudentFlags, "student")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFlags:
    """The distillation loss of a run; None leaves the recipe's."""

    distill: str | None = flag(
        "--distill", metavar=f"[{'|'.join(distillations())}]", help="Loss against the teacher; default: the recipe's."
    )
    distill_weight: float | None = flag(
        "--lambda",
        type=Number(0, 1),
        help="λ, weight of the loss against the teacher; default: the recipe's, or with --distill its paper's.",
    )
    temperature: float | None = flag(
        "--tau",
        type=Number(0.01, 1000),
        help="τ, temperature of the loss against the teacher; default: as for --lambda.",
    )


loss_options = bundled(LossFlags, "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFlags:
    """Which caches teach, and how several of them do."""

    caches: tuple[str, ...]
    teacher_weight: str | None = flag(
        "--teacher-weight", metavar="W,W", help="Weights of several teachers, in the order of --cache; default: equal."
    )
    combine: str | None = flag(
        "--combine",
        metavar=f"[{'|'.join(COMBINATIONS)}]",
        help="Several caches: learn from the mean of their probabilities (default), or from each.",
    )

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights given; ValueError for what is no list of numbers."""
        return numbers("--teacher-weight", self.teacher_weight) if self.teacher_weight else None

    def headers(self) -> "dict[str, Header]":
        """Return the headers of the caches on local disks, by place.

        Raises:
            ValueError: flags that one cache has no use for; the same cache twice. CacheError: a missing cache.
        """
        from teacher_cache.store.header import local_header

        if len(self.caches) < 2:
            refuse_ignored(["teacher_weight", "combine", "teachers"], "they are for several caches")
        require_distinct(self.caches)
        _ = self.weights  # reads the numbers
        return {url: header for url in self.caches if (header := local_header(url)) is not None}

    def words(self, combine: str) -> tuple[str, ...]:
        """Describe how several caches teach, in a sentence; nothing for one or none."""
        from student.feed.teaching import parts_of_one
        from student.recipe.combinations import combination_named

        if len(self.caches) < 2:
            return ()
        weights = parts_of_one(self.weights, len(self.caches))
        named = ", ".join(f"{url} {weight:.3g}" for url, weight in zip(self.caches, weights, strict=True))
        return (f"{count(len(self.caches), 'teacher')} ({combination_named(combine).title}): {named}",)

    def open(self, stack: ExitStack, index: "ShardIndex") -> "tuple[TeacherCache, ...]":
        """The caches, closed with the stack; errors as `TeacherCache.open`.

        Rank 0 says of which nothing proves that the teacher's classes are those of the shards.
        """
        from teacher_cache.store.cache import TeacherCache

        caches = tuple(stack.enter_context(TeacherCache.open(url)) for url in self.caches)
        if index.class_names and world_from_env().rank == 0:
            for cache in caches:
                if not cache.header.class_names:
                    say(
                        f"classes: {cache.url} was made without the class names of its teacher: nothing shows that "
                        "they are in the order of the shards"
                    )
        return caches


def cache_options(*, required: bool = False, help: str) -> Decorator:
    """--cache, --teacher-weight and --combine, as `cache_flags`."""
    option = click.option("--cache", "caches", multiple=True, required=required, type=CACHE, help=help)
    return bundled(CacheFlags, "cache_flags", option)


def require_start(recipe: "StudentRecipe") -> None:
    """Refuse weights to start from that a recipe lacks (ValueError), or that are missing or damaged (ArtefactError)."""
    from student.recipe.student_recipe import PUBLISHED
    from teacher_cache.network.teacher_name import require_known
    from teacher_cache.network.weights_metadata import require_weights

    recipe.require_start()
    scheme, _, name = recipe.init_weights.partition(":")
    if scheme == PUBLISHED:
        require_known("init_weights", name)
    elif recipe.init_weights:
        require_weights("init_weights", as_path("init_weights", recipe.init_weights))


def numbers(option: str, text: str) -> tuple[float, ...]:
    """A comma-separated list of finite numbers; ValueError naming the option."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{option}: expected numbers separated by commas, got {short(text)!r}")
    return values


def integers(option: str, text: str) -> tuple[int, ...]:
    """A comma-separated list of integers; ValueError naming the option."""
    values = numbers(option, text)
    if any(value != value // 1 for value in values):
        raise ValueError(f"{option}: expected integers separated by commas, got {short(text)!r}")
    return tuple(map(int, values))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFlags:
    """How runs are executed."""

    precision: str | None = shared(precision_option)
    accumulate: int = flag("--accumulate", default=1, type=COUNT, help="Micro-batches per step.")
    compile: bool = flag("--compile", is_flag=True, help="torch.compile the student.")
    deterministic: bool = shared(deterministic_option)
    grad_checkpointing: bool = flag(
        "--grad-checkpointing",
        is_flag=True,
        help="Keep little of each forward, compute it again: less memory, a third more time.",
    )
    log_every: int = flag(
        "--log-every",
        default=50,
        type=COUNT,
        metavar="STEPS",
        help="Steps between lines of metrics in the files of the run.",
    )
    checkpoint_every: int = flag(
        "--checkpoint-every",
        default=0,
        type=FROM_ZERO,
        metavar="STEPS",
        help="Steps between checkpoints within an epoch; 0: only at its end.",
    )
    eval_every: int | None = flag(
        "--eval-every",
        type=COUNT,
        metavar="EPOCHS",
        help="Epochs between evaluations on --val-shards; default 1; below 50,000 images a twentieth of the run.",
    )
    device: str | None = shared(device_option)
    workers: int = shared(workers_option("Rendering processes per rank.", beside_network=True))
    scratch: Path | None = flag(
        "--scratch", type=PATH, help="Local disk for the stored logits in use, once per machine; default: TMPDIR."
    )

    def settings(
        self, *, run_precision: str | None, seed: int = 0, views_used: int | None = None, quiet: bool = False
    ) -> "TrainSettings":
        """The settings of a run.

        Args:
            run_precision: the precision of the run that goes on, where there is one. quiet: do not say the precision.

        Raises:
            ValueError: a device that is not here.
        """
        from student.recipe.settings import TrainSettings
        from teacher_cache.network.device import chosen_device

        device = chosen_device(self.device)
        how: dict[str, Any] = {"compile": self.compile, "deterministic": self.deterministic}
        world = world_from_env()
        precision = announced_precision(device, self.precision, existing=run_precision, quiet=quiet, world=world, **how)
        return TrainSettings(
            seed=seed,
            precision=cast("Precision", precision),
            accumulate=self.accumulate,
            **how,
            views_used=views_used,
            workers=suited_workers(self.workers, device),
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            eval_every=self.eval_every or 1,
            device=device,
            scratch=str(self.scratch or ""),
            grad_checkpointing=self.grad_checkpointing,
        )


def evaluated(settings: "TrainSettings", epochs: int, index: "ShardIndex") -> "TrainSettings":
    """The settings where --eval-every was not typed: the many short epochs of a small set are not all evaluated."""
    if given_flag("eval_every") or not index.image_set.is_small:
        return settings
    return replace(settings, eval_every=max(1, epochs // _EVALUATIONS))


training_options = bundled(TrainingFlags, "training")
weights_options = options(
    click.option("--weights", required=True, type=PATH, help="Weights of a student: a .safetensors file, or its run."),
    click.option("--model", help="The network; needed only where the weights do not name it."),
)


def student_of(weights: Path, model: str | None, *, quiet: bool = False) -> "tuple[nn.Module, ExportInfo]":
    """The student of a weights file; what was assumed of it is printed unless `quiet`; errors as `load_student`."""
    from student.run.export import load_student

    network, info = load_student(weights, model=model)
    for note in () if quiet else info.notes:
        say(note)
    return network, info


def refuse_changes(out: Path, changes: "Iterable[Changed]") -> None:
    """RunError naming the flag of the first change of an existing run or sweep, before anything follows from it."""
    for name, old, new, parameters in changes:
        context = click.get_current_context()
        params = [param for param in context.command.params if param.name in parameters and given_flag(param.name)]
        keys = {text.partition("=")[0].strip().removesuffix(".name") for text in context.params.get("sets") or ()}
        words = [(f"--set {name}=" if name in keys else f"--config {context.params.get('config')}: {name} = ", new)]
        words = [(f"{param.opts[0]} ", context.params.get(param.name or "")) for param in params] or words
        typed = words[0][0] + (f"{words[0][1]:g}" if isinstance(words[0][1], float) else str(words[0][1]))
        existing = "none" if old == "" else old
        raise RunError(
            f"{typed}: {out} was begun with {existing}; leave it out to go on with that, or give another --out"
        )
