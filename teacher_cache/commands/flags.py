"""Flags that several commands of both stages share, as frozen values: the teacher, how it is run, the record."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.commands.flags import (
    COUNT,
    FROM_ZERO,
    PATH,
    Decorator,
    bundled,
    device_option,
    flag,
    given_flag,
    pairs,
    precision_option,
    shared,
)
from shards.console import runs_next_itself, say
from shards.names import as_path
from shards.text.figures import count
from shards.world import ALONE, World
from teacher_cache.record.kinds.table import KINDS

if TYPE_CHECKING:
    import torch

    from shards.index.shard_index import ShardIndex
    from shards.views.view_recipe import ViewRecipe
    from teacher_cache.network.teacher import Teacher
    from teacher_cache.network.weights_metadata import TrainedAs
    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.store.spec import CacheSpec, TeacherSpec


deterministic_option = click.option(
    "--deterministic", is_flag=True, help="On a GPU: the same bits at every run, slower. A CPU has them anyway."
)


def announced_precision(
    device: str,
    typed: str | None,
    *,
    existing: str | None = None,
    compile: bool = False,
    deterministic: bool = False,
    quiet: bool = False,
    world: World = ALONE,
) -> str:
    """Return the precision of a command, and say it with its reason where nobody typed it, and what is slow.

    Args:
        device: its name. typed: --precision. existing: of the run or cache that goes on. quiet: say nothing.
        world: of the ranks that compute in it; the first one says it.
    """
    from teacher_cache.network.arithmetic import default_precision
    from teacher_cache.network.device import expectations

    default, reason = (existing, "as begun") if existing is not None else default_precision(device, world)
    precision = typed or default
    lines = [] if typed or runs_next_itself() else [f"precision {precision}: {reason}; --precision chooses another"]
    slow = expectations(device, precision=precision, compile=compile, deterministic=deterministic)
    for line in [*lines, *slow] if not quiet and world.rank == 0 else ():
        say(line)
    return precision


_IMAGENETS = ("imagenet-1k", "imagenet-12k", "imagenet-22k")
"""What --teacher-classes takes beside files: sets of classes that timm knows."""


def _rgb(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, float, float] | None:
    """Three numbers in [0, 1] units."""
    if value is None:
        return None
    try:
        red, green, blue = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0.485,0.456,0.406, got {value!r}", ctx, param) from None
    if not all(0.0 <= number <= 1.0 for number in (red, green, blue)):
        raise click.BadParameter(f"expected numbers in [0, 1] units (pixels over 255), got {value!r}", ctx, param)
    return red, green, blue


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFlags:
    """Which teacher: a timm name or a function, a file of weights, arguments, and the normalisation it wants."""

    teacher: str | None
    teacher_weights: Path | None = flag(
        "--teacher-weights",
        type=PATH,
        help="A local .safetensors or torch file, a run or an export; default: timm's hub, or what the function "
        "returns.",
    )
    teacher_ema: str = flag(
        "--teacher-ema",
        type=click.Choice(["yes", "no"]),
        default="yes",
        help="Use the averaged (EMA) weights if a checkpoint has both.",
    )
    teacher_args: tuple[str, ...] = flag(
        "--teacher-arg",
        multiple=True,
        metavar="KEY=VALUE",
        help="An argument of timm.create_model, or of your function.",
    )
    teacher_classes: str | None = flag(
        "--teacher-classes",
        metavar="FILE",
        help="Names of the teacher's classes, one a line in its order, or imagenet-1k; default: what its weights say.",
    )
    teacher_mean: tuple[float, float, float] | None = flag(
        "--teacher-mean",
        callback=_rgb,
        metavar="R,G,B",
        help="Mean of the images that the teacher was trained with; default: as stored with its weights.",
    )
    teacher_std: tuple[float, float, float] | None = flag(
        "--teacher-std", callback=_rgb, metavar="R,G,B", help="Standard deviation of these images."
    )

    def checked_name(self) -> str:
        """The teacher as a cache's spec calls it; ValueError for a name, a file or arguments that cannot be."""
        from teacher_cache.network.teacher_name import is_own, require_known, spec_name, split_name
        from teacher_cache.network.weights_metadata import require_arguments, require_weights

        if self.teacher_weights is not None:
            require_weights("--teacher-weights", self.teacher_weights)
        name, known = self.named()
        try:
            require_known("--teacher", name)
        except ValueError:
            if known is None or given_flag("teacher"):
                raise
            raise ValueError(
                f"--teacher-weights {self.teacher_weights}: holds {known.model!r}, which timm does not know by this "
                f"name; run `export {self.teacher_weights} FOLDER` and give --teacher local-dir:FOLDER instead"
            ) from None
        base, arguments = split_name(name)
        arguments |= (known.arguments if known else {}) | pairs("--teacher-arg", self.teacher_args)
        if not is_own(base):
            require_arguments(arguments, "--teacher-arg ")
        return spec_name(base, arguments)

    def named(self) -> "tuple[str, TrainedAs | None]":
        """The teacher's name, and what a weights file of `train-teacher` says: its model where none is typed."""
        from teacher_cache.network.teacher_name import DEFAULT_TEACHER, is_own
        from teacher_cache.network.weights_metadata import require_possible, trained_as, weights_file

        if self.teacher is not None and not self.teacher.strip():
            raise ValueError("--teacher: expected a name, got an empty one")
        name = self.teacher or DEFAULT_TEACHER
        known = None if is_own(name) else trained_as(self.teacher_weights)
        if known is not None and self.teacher_weights is not None:
            require_possible(weights_file(self.teacher_weights), known.arguments)
        return (known.model if known and not given_flag("teacher") else name), known

    def typed_classes(self) -> tuple[str, ...]:
        """The class names in the file of --teacher-classes; () without it, and for timm's name of an ImageNet."""
        from shards.index.class_names import read_class_names

        if not self.teacher_classes or self.teacher_classes in _IMAGENETS:
            return ()
        return read_class_names(as_path("--teacher-classes", self.teacher_classes), "--teacher-classes")

    def check_known_classes(self, index: "ShardIndex") -> None:
        """Refuse a teacher whose file, or --teacher-classes, names other classes than the shards'; ValueError.

        It imports no torch.
        """
        from teacher_cache.stage1.agreement import match_teacher

        name, known = self.named()
        typed = self.typed_classes()
        names = typed or (known.class_names if known and not self.teacher_classes else ())
        if typed and known and known.class_names and len(typed) != (expected := len(known.class_names)):
            raise ValueError(
                f"--teacher-classes {self.teacher_classes}: expected {count(expected, 'name')}, one a line, as the "
                f"teacher has {count(expected, 'class')}; got {len(typed):,}"
            )
        if names:
            match_teacher(index, (names,), len(names), name)

    def check_published_classes(self, index: "ShardIndex") -> None:
        """Refuse a published teacher of other classes than the shards', before its weights are fetched; ValueError."""
        from teacher_cache.network.teacher_name import split_name
        from teacher_cache.network.timm_network import published_class_lists, published_classes
        from teacher_cache.stage1.agreement import match_teacher

        name, _ = split_name(self.named()[0])
        if self.teacher_weights is None and not self.teacher_classes and (num_classes := published_classes(name)):
            match_teacher(index, published_class_lists(name), num_classes, name)

    def _class_names(self) -> tuple[str, ...]:
        """The names of --teacher-classes, from a file or of an ImageNet; () without it."""
        from teacher_cache.network.timm_network import imagenet_class_lists

        if self.teacher_classes in _IMAGENETS:
            return imagenet_class_lists(self.teacher_classes)[0]
        return self.typed_classes()

    def load(
        self,
        views: "ViewRecipe",
        index: "ShardIndex",
        *,
        device: "str | torch.device | None",
        precision: str,
        existing: "TeacherSpec | None" = None,
        compile: bool = False,
        deterministic: bool = False,
        world: World = ALONE,
    ) -> "Teacher":
        """The teacher for the views of a recipe and the classes of the shards; errors as `load_teacher`.

        Args:
            precision: as `announced_precision` returns it. existing: the teacher of an existing cache.
        """
        from shards.index.pixel_rule import other_pixels
        from teacher_cache.network.device import rank_device
        from teacher_cache.network.heap import keep_freed_memory
        from teacher_cache.network.own_network import search_current_folder
        from teacher_cache.network.teacher import TeacherOptions, load_teacher
        from teacher_cache.network.weights_metadata import which_weights
        from teacher_cache.stage1.agreement import fit_classes

        target, (name, known) = rank_device(device, world), self.named()
        quiet = world.rank > 0
        search_current_folder()
        if target.type == "cpu":
            keep_freed_memory()
        teacher = load_teacher(
            name,
            weights=self.teacher_weights,
            precision=precision,
            device=target,
            input_size=views.size,
            model_kwargs=(known.arguments if known else {}) | pairs("--teacher-arg", self.teacher_args),
            options=TeacherOptions(
                view_mean=views.mean,
                view_std=views.std,
                model_mean=self.teacher_mean or (known.mean if known else None),
                model_std=self.teacher_std or (known.std if known else None),
                class_names=self._class_names(),
                averaged=self.teacher_ema == "yes",
                compile=compile,
                deterministic=deterministic,
            ),
        )
        if self.teacher_weights is not None and not quiet and (words := which_weights(self.teacher_weights)):
            say(f"teacher: {words}")
        if teacher.chosen and not quiet:
            say(f"teacher: {self.teacher_weights}: {teacher.chosen} (--teacher-ema {self.teacher_ema})")
        if teacher.part and not quiet:
            say(f"teacher: {self.teacher_weights}: {teacher.part}")
        if known and (words := other_pixels(known.pixels, index.pixels)) and not quiet:
            say(f"warning: the teacher was {words}")
        if known and existing is None and (words := known.size_words(views.size)) and not quiet:
            say(f"warning: {words}")
        fitted = fit_classes(teacher, index, existing)
        if fitted.words and not quiet:
            say(fitted.words)
        return fitted.teacher


teacher_options = bundled(
    TeacherFlags,
    "teacher",
    click.option(
        "--teacher",
        default="regnety_160.deit_in1k",
        help="A timm classifier with its tag, or your own package.module:function.",
    ),
)


def optional_teacher_options(help: str) -> Decorator:
    """The same where no teacher is asked unless one is named."""
    return bundled(TeacherFlags, "teacher", click.option("--teacher", help=help))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsTeacher:
    """How the teacher of stage 1 is run."""

    batch_size: int | None = flag(
        "--batch-size", type=COUNT, help="Views per teacher forward; default: up to 256 on a GPU, 64 on a CPU."
    )
    precision: str | None = shared(precision_option)
    compile: bool = flag("--compile", is_flag=True, help="torch.compile the teacher.")
    deterministic: bool = shared(deterministic_option)
    device: str | None = shared(device_option)

    def views_per_forward(self, network: "Teacher", index: "ShardIndex", recipe: "ViewRecipe") -> int:
        """The batch of stage 1: as given, else what suits the device and the shards."""
        from teacher_cache.stage1.build import default_batch_size

        if self.batch_size is not None:
            return self.batch_size
        return default_batch_size(network.device.type, int(index.rows_S.max()), recipe.block_size)

    def load(
        self,
        teacher: TeacherFlags,
        views: "ViewRecipe",
        index: "ShardIndex",
        existing: "CacheSpec | None" = None,
        world: World = ALONE,
    ) -> "Teacher":
        """The teacher of a new cache, or in the precision of the existing one; errors as `load_teacher`."""
        from teacher_cache.network.device import chosen_device, rank_device

        device, before = rank_device(self.device, world), existing.teacher if existing is not None else None
        how: dict[str, Any] = {"compile": self.compile, "deterministic": self.deterministic}
        begun_in = before.precision if before is not None else None
        named = chosen_device(self.device)  # without a rank's number: all ranks have one precision
        precision = announced_precision(named, self.precision, existing=begun_in, world=world, **how)
        return teacher.load(views, index, device=device, precision=precision, existing=before, world=world, **how)


runs_teacher_options = bundled(RunsTeacher, "execution")


def record_kind_callback(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The name of a record kind, or "auto", or None where there is no default; the table says which there are."""
    if value is not None and value != "auto" and value not in KINDS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(('auto', *KINDS))}.", ctx, param)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFlags:
    """What is kept of each answer."""

    record_kind: str = flag(
        "--record",
        default="auto",
        callback=record_kind_callback,
        metavar=f"[{'|'.join(('auto', *KINDS))}]",
        help="auto: lowrank, or dense8 up to 64 classes; dense: all logits, lossless.",
    )
    top_k: int = flag(
        "--top-k", default=0, show_default=False, type=FROM_ZERO, help="Classes stored exactly; 0: chosen from --bytes."
    )
    num_bytes: int = flag(
        "--bytes", default=0, show_default=False, type=FROM_ZERO, help="Bytes on disk per view; default 64."
    )

    def format(
        self, num_classes: int, index: "ShardIndex", recipe: "ViewRecipe", existing: "CacheSpec | None" = None
    ) -> "RecordFormat":
        """The record format for so many classes and views of these shards; ValueError as `RecordFormat`.

        What a cache that is there keeps for its fidelity report stays as it is.
        """
        from teacher_cache.record.record_format import RecordFormat

        k, num_bytes = self.top_k or None, self.num_bytes or None
        record = RecordFormat.chosen(self.record_kind, num_classes, k=k, num_bytes=num_bytes)
        if existing is not None:
            return replace(record, fidelity_floor=existing.record.fidelity_floor)
        return record.fitted_to(index.num_samples * recipe.block_views, index.num_shards)


record_options = bundled(RecordFlags, "record")
