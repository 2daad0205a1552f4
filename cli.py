"""The command line: thin commands over the packages, and the only place that prints.

Every command builds values from flags, calls one function of a package and shows the events it yields: as a bar with
rate and time left on a terminal, as plain lines otherwise. Errors become one message and an exit code:

    0    done
    1    an artefact is wrong (shards, cache, run): the message says what, where, expected / got, next step
    2    a wrong argument
    75   stopped by a signal with everything saved: run the same command again to go on
    130  interrupted

Heavy libraries are imported inside the commands, so that --help answers at once.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import click

from shards.errors import ArtefactError
from shards.world import World


class _Commands(click.Group):
    """A group that turns every error into one clean message; --debug shows the traceback as well."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt:
            _fail(ctx, "interrupted; run the same command again to go on", 130)
        except ArtefactError as error:
            _fail(ctx, str(error), 1)
        except ValueError as error:
            _fail(ctx, str(error), 2)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except Exception as error:
            _fail(ctx, f"{type(error).__name__}: {error}\nThis is a defect; run with --debug before the command.", 1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the job, not of the alphabet."""
        return list(self.commands)


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    if ctx.params.get("debug"):
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    ctx.exit(code)


class Bar:
    """Progress: a bar with rate and time left on a terminal, a plain line every few seconds otherwise."""

    LINE_EVERY_S = 10.0

    def __init__(self, label: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        self._tty = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=label, unit=unit, disable=not self._tty, dynamic_ncols=True, smoothing=0.1)
        self._label, self._unit, self._total = label, unit, total
        self._done, self._start, self._next = 0, time.monotonic(), time.monotonic() + self.LINE_EVERY_S
        self._first = 0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()

    def start_at(self, done: int) -> None:
        """What was done before this run: it does not count into the rate."""
        self._first = self._done = done
        self._bar.initial = self._bar.n = done
        self._bar.refresh()

    def to(self, done: int, note: str = "") -> None:
        """Now at `done` of the total, which grows when there is more; `note` stands behind the rate."""
        grown, self._total = done > self._total, max(self._total, done)
        self._bar.total = self._total
        self._bar.set_postfix_str(note, refresh=False)
        advanced, self._done = done - self._done, done
        self._bar.update(advanced)
        now = time.monotonic()
        if not self._tty and advanced and (now >= self._next or (done == self._total and not grown)):
            rate = (done - self._first) / max(now - self._start, 1e-9)
            left = (self._total - done) / rate if rate > 0 else float("inf")
            tail = f", {_duration(left)} left" if done < self._total else f" in {_duration(now - self._start)}"
            say(f"{self._label}: {done}/{self._total} {self._unit}, {rate:.1f}/s{tail}{', ' + note if note else ''}")
            self._next = now + self.LINE_EVERY_S

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._bar.clear()
        say(text)
        self._bar.refresh()


def say(text: str) -> None:
    """A line for the reader: progress and remarks go to stderr, results to stdout."""
    click.echo(text, err=True)


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, secs = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{secs:02}s" if minutes else f"{seconds:.1f}s"


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator, in the order in which they are to be listed."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Distil DeiT students from a teacher that runs once.

    \b
    make-shards     images      → WebDataset shards + index
    cache-teacher   shards      → teacher cache: one small record per view      (stage 1, GPU)
    train-student   shards+cache → DeiT student, any λ, any τ, hard or soft     (stage 2, no teacher)
    ablate          cache       → a λ × τ map of students
    """


# --- shards -----------------------------------------------------------------------------------------------------------

_WORKERS = max(1, (os.cpu_count() or 1) - 1)
_shards = click.option(
    "--shards", required=True, help="Shards: a folder, a tar, or a brace range such as train-{000000..001023}.tar; "
    "local, s3://, gs:// or https://."
)  # fmt: skip
_shard_cache = click.option(
    "--shard-cache", type=click.Path(path_type=Path), help="Where remote shards are kept locally."
)


def _workers(help: str = "Rendering processes.") -> Callable[[Any], Any]:
    return click.option("--workers", default=_WORKERS, show_default=True, type=click.IntRange(0), help=help)


_class_names = click.option(
    "--class-names", type=click.Path(path_type=Path),
    help="A file with one class a line, in the order of the labels; default: the folders, sorted.",
)  # fmt: skip


def _read_class_names(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--class-names {path}: cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


@cli.command("make-shards")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--samples-per-shard", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Of the order of the samples.")
@_class_names
@_workers("Processes; the bytes do not depend on it.")
def make_shards(
    source: Path, dest: Path, samples_per_shard: int, seed: int, class_names: Path | None, workers: int
) -> None:
    """Write an ImageFolder tree SOURCE (class/…/image) as WebDataset shards and an index in DEST.

    Run it again to go on where it was stopped; finished shards are kept.
    """
    from shards.tars.writer import write_shards

    bar = None
    names = _read_class_names(class_names)
    for event in write_shards(
        source, dest, samples_per_shard=samples_per_shard, seed=seed, workers=max(1, workers), class_names=names
    ):
        bar = bar or Bar("make-shards", event.num_shards, "shards")
        bar.to(event.shards_done)
        if event.index is not None:
            index = event.index
            click.echo(
                f"{event.num_samples} samples of {index.num_classes} classes in {index.num_shards} shards, "
                f"{event.num_bytes / 1e6:.1f} MB; index {event.path}\nfingerprint {index.fingerprint}"
            )


@cli.command("check-shards")
@click.argument("shards")
@click.option("--num-classes", type=click.IntRange(2), help="Labels must lie below it; default: the largest label + 1.")
@_class_names
@click.option("--label-key", help="Take the label from this key of each sample's .json (img2dataset).")
@click.option("--overwrite", is_flag=True, help="Write the index anew instead of checking against the one there.")
@click.option("--decode", is_flag=True, help="Also decode every image.")
@_shard_cache
@_workers("Processes.")
def check_shards(
    shards: str,
    num_classes: int | None,
    class_names: Path | None,
    label_key: str | None,
    overwrite: bool,
    decode: bool,
    shard_cache: Path | None,
    workers: int,
) -> None:
    """Scan SHARDS strictly, ours or anyone's, and write their index; with an index, check them against it."""
    from shards.index.shard_index import ShardIndex, index_path
    from shards.index.sources import expand_shards
    from shards.tars.scan import scan_shards

    path = index_path(shards, shard_cache)
    expected = ShardIndex.load(path) if path.exists() and not overwrite else None
    names = _read_class_names(class_names) or (expected.class_names if expected else ())
    urls = expand_shards(shards)
    with Bar("check-shards", len(urls), "shards") as bar:
        for event in scan_shards(
            urls,
            num_classes=num_classes or (expected.num_classes if expected else None),
            class_names=names,
            label_key=label_key,
            expected=expected,
            decode=decode,
            workers=max(1, workers),
            cache_dir=shard_cache,
        ):
            bar.to(event.shards_done)
            if event.problem:
                bar.say(f"  {event.problem}")
            if event.index is not None:
                index = event.index
    if expected is None:
        index.save(path)
    click.echo(
        f"{index.num_samples} samples of {index.num_classes} classes in {index.num_shards} shards: "
        "all as they must be\n"
        f"{'index' if expected is None else 'checked against'} {path}\nfingerprint {index.fingerprint}"
    )


# --- both stages ------------------------------------------------------------------------------------------------------

_device = click.option("--device", help="cpu or cuda; default: cuda where there is one.")
_precision = click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)


def _chosen_device(device: str | None) -> str:
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda is not available here; give --device cpu")
    return device


_teacher_files = _options(
    click.option(
        "--teacher-weights",
        type=click.Path(path_type=Path),
        help="A local .safetensors or torch state dict; default: timm's hub.",
    ),
    click.option("--teacher-arg", "teacher_args", multiple=True, metavar="KEY=VALUE", help="For timm.create_model."),
)  # fmt: skip
_teacher = _options(
    click.option("--teacher", default="regnety_160.deit_in1k", show_default=True, help="A timm classifier, with tag."),
    _teacher_files,
)


def _load_teacher(flags: dict[str, Any], views: Any, precision: str, local_rank: int = 0) -> Any:
    """The teacher of the --teacher flags for the views of a recipe."""
    from teacher_cache.network.teacher import load_teacher

    device = _chosen_device(flags["device"])
    return load_teacher(
        flags["teacher"],
        weights=flags["teacher_weights"],
        precision=precision,
        device=f"cuda:{local_rank}" if device == "cuda" else device,
        compile=flags.get("compile", False),
        input_size=views.size,
        view_mean=views.mean,
        view_std=views.std,
        model_kwargs=_pairs("--teacher-arg", flags["teacher_args"]),
    )


def _pairs(option: str, items: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE texts with values as TOML reads them (3, 0.5, true), else as text."""
    import tomllib

    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ValueError(f"{option} {item!r}: expected KEY=VALUE")
        try:
            values[key] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values


# --- stage 1 ----------------------------------------------------------------------------------------------------------

_recipe_options = _options(
    click.option("--recipe", "recipe_name", default="deit", show_default=True, help="Views: deit, deit3, plain …"),
    click.option("--size", type=click.IntRange(1), help="Side of the views, pixels; default: the recipe's."),
    click.option("--view-seed", default=0, show_default=True, help="Seed of the views."),
    click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field of the view recipe."),
    click.option(
        "--views-per-unit", type=click.IntRange(1),
        help="Views computed and committed at once (decoded once); default 6, or what divides --views.",
    ),
)  # fmt: skip
_record_options = _options(
    click.option(
        "--record", "record_kind", default="auto", show_default=True,
        type=click.Choice(["auto", "hard", "topk", "lowrank", "dense8", "dense"]),
        help="auto: lowrank, or dense8 up to 64 classes; dense: all logits, lossless.",
    ),
    click.option("--top-k", default=0, type=click.IntRange(0), help="Classes kept exactly; 0: the budget chooses."),
    click.option("--bytes", "num_bytes", default=0, type=click.IntRange(0), help="On disk per view; default 64."),
)  # fmt: skip


def _view_recipe(flags: dict[str, Any], num_views: int, existing: Any) -> Any:
    """The view recipe of stage 1 from its flags; views per unit as in a cache that is there already."""
    from shards.views.view_recipe import recipe_named

    values = {k: tuple(v) if isinstance(v, list) else v for k, v in _pairs("--set", flags["sets"]).items()}
    values |= {"seed": flags["view_seed"]} | ({"size": flags["size"]} if flags["size"] else {})
    values["block_views"] = flags["views_per_unit"] or (
        existing.recipe.block_views if existing else _divisor(num_views)
    )
    return recipe_named(flags["recipe_name"], **values)


def _divisor(num_views: int) -> int:
    """6 where it divides the views, else their largest divisor up to 12."""
    return 6 if num_views % 6 == 0 else max(d for d in range(1, 13) if num_views % d == 0)


def _record_format(flags: dict[str, Any], num_classes: int) -> Any:
    from teacher_cache.record.codec import RecordFormat

    kind, k, num_bytes = flags["record_kind"], flags["top_k"], flags["num_bytes"]
    if kind == "auto":
        kind = RecordFormat.automatic(num_classes).kind
    return RecordFormat(kind=kind, num_classes=num_classes, k=k, num_bytes=num_bytes)


@cli.command("cache-teacher")
@_shards
@click.option("--cache", required=True, help="The cache to make, extend or finish: a folder, s3:// or gs://.")
@_teacher
@click.option(
    "--views", "num_views", required=True, type=click.IntRange(1), help="Views of every sample; may be raised."
)
@_recipe_options
@_record_options
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Views per teacher forward.")
@_precision
@click.option("--compile", is_flag=True, help="torch.compile the teacher.")
@_device
@_shard_cache
@_workers()
def cache_teacher(shards: str, cache: str, num_views: int, **flags: Any) -> None:
    """Run the teacher once over views of every sample and keep a small record of each (stage 1).

    Run the same command again to go on after a kill, or with more --views to extend. Any number of processes may work
    on one cache: under torchrun, as a SLURM array, or started by hand with RANK and WORLD_SIZE.
    """
    from shards.index.reader import ShardReader
    from shards.index.shard_index import open_index
    from shards.signals import StopRequest
    from shards.world import world_from_env
    from teacher_cache.stage1.build import build_cache
    from teacher_cache.stage1.opening import open_or_create
    from teacher_cache.stage1.stage1_events import CacheOpened
    from teacher_cache.store.zarr_store import TeacherCache

    world = world_from_env()
    index = open_index(shards, flags["shard_cache"])
    existing = None
    if TeacherCache.exists(cache):
        with TeacherCache.open(cache) as there:
            existing = there.spec
    recipe = _view_recipe(flags, num_views, existing)
    network = _load_teacher(flags, recipe, flags["precision"], local_rank=world.local_rank)
    record = _record_format(flags, network.num_classes)
    display = _Stage1Display(world, chance=1 / network.num_classes)
    with StopRequest() as stop, ShardReader(index, flags["shard_cache"]) as reader:
        opened = None
        for event in open_or_create(
            cache, index, network, recipe, record, num_views=num_views, reader=reader, world=world
        ):
            display.show(event)
            opened = event.cache if isinstance(event, CacheOpened) else None
        assert opened is not None, "the last event carries the cache"
        with opened:
            for event in build_cache(
                opened,
                index,
                network,
                reader=reader,
                world=world,
                workers=flags["workers"],
                batch_size=flags["batch_size"],
                should_stop=lambda: stop.told,
            ):
                display.show(event)


class _Stage1Display:
    """A bar over views, lines for what stands out."""

    def __init__(self, world: World, *, chance: float) -> None:
        self._quiet, self._world_size, self._chance = world.rank > 0, world.size, chance
        self._bar: Bar | None = None
        self._calibration: Bar | None = None
        self._agreement: list[float] = []

    def show(self, event: Any) -> None:
        """Draw one event of `teacher_cache.stage1.stage1_events`."""
        from teacher_cache.stage1 import stage1_events as events

        match event:
            case events.Calibrated() if not self._quiet:
                self._calibration = self._calibration or Bar("calibrate", event.num_views, "views")
                self._calibration.to(event.views_done)
            case events.CacheOpened() if not self._quiet:
                what = "made" if event.created else "extended" if event.grown else "found"
                say(f"{what} {event.cache.url}: {event.cache.num_views} views, record {event.cache.spec.record.kind}")
            case events.Started() if not self._quiet:
                say(f"{event.num_units - event.missing_units} of {event.num_units} units are there")
                of = f" (rank 0 of {self._world_size})" if self._world_size > 1 else ""
                self._bar = Bar(f"cache-teacher{of}", event.share_views, "views")
            case events.UnitDamaged():
                say(f"warning: {event.reason}; it will be computed again")
            case events.BatchDone() if self._bar is not None:
                self._bar.to(event.views_done)
            case events.UnitCommitted():
                self._agreement.append(event.label_agreement)
            case events.BuildFinished():
                self._finish(event)

    def _finish(self, event: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        known = [share for share in self._agreement if share == share]
        if known and sum(known) / len(known) < 2 * self._chance and self._chance < 0.4:
            say(
                f"warning: the teacher's first class is the label for only {100 * sum(known) / len(known):.2f} % "
                "of the views: do teacher and shards number their classes alike?"
            )
        click.echo(
            f"{event.num_forwards} teacher forwards, {event.views_done} views in {_duration(event.seconds)}; "
            f"{event.missing_units} units missing"
        )
        if event.stopped:
            say("stopped, every finished unit is kept; run the same command again to go on")
            from shards.signals import REQUEUE_EXIT_CODE

            raise click.exceptions.Exit(REQUEUE_EXIT_CODE)


@cli.command("plan-cache")
@_shards
@_teacher
@click.option("--views", "num_views", required=True, type=click.IntRange(1), help="Views of every sample.")
@_recipe_options
@_record_options
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Views per teacher forward.")
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(1), help="Processes like this one.")
@click.option("--seconds", default=20.0, show_default=True, help="How long stage 1 is timed.")
@click.option("--calibration-views", default=768, show_default=True, type=click.IntRange(8))
@_precision
@click.option("--compile", is_flag=True, help="torch.compile the teacher.")
@_device
@_shard_cache
@_workers()
def plan_cache(
    shards: str, num_views: int, gpus: int, seconds: float, calibration_views: int, batch_size: int, **flags: Any
) -> None:
    """Predict bytes, hours and error of a cache before it is made, from a short calibration on this machine."""
    from shards.index.reader import ShardReader
    from shards.index.shard_index import open_index
    from teacher_cache.inspect.cache_plan import Plan
    from teacher_cache.inspect.cache_plan import plan_cache as run

    index = open_index(shards, flags["shard_cache"])
    recipe = _view_recipe(flags, num_views, None)
    network = _load_teacher(flags, recipe, flags["precision"])
    with ShardReader(index, flags["shard_cache"]) as reader:
        for event in run(
            index,
            network,
            recipe,
            _record_format(flags, network.num_classes),
            num_views=num_views,
            reader=reader,
            workers=flags["workers"],
            batch_size=batch_size,
            num_processes=gpus,
            calibration_views=calibration_views,
            seconds=seconds,
        ):
            if not isinstance(event, Plan):
                say(event.what)
                continue
            click.echo(f"{index.num_samples} samples × {num_views} views in {event.num_units} units")
            click.echo(
                f"bytes     {event.bytes_per_view:.1f} per view; {event.total_bytes / 1e9:.3f} GB, of these "
                f"{event.fidelity_bytes / 1e9:.3f} GB full logits that measure its error"
            )
            click.echo(
                f"hours     {event.hours:.2f} on {gpus} such process{'es' * (gpus > 1)}: "
                f"{event.views_per_s:.1f} views/s each, timed over {event.num_timed} views"
            )
            for row in event.errors:
                click.echo(f"τ = {row.temperature:<4g}  gradient error {row.gradient_error:.4f}  KL {row.kl:.2e}")
            if event.errors:
                click.echo(
                    f"errors on {event.num_measured} views the record was not fitted on, against an untrained student"
                )


@cli.command("show-views")
@_shards
@click.option("--cache", help="Its recipe, and its record's top classes.")
@click.option("--recipe", "recipe_name", default="deit", show_default=True, help="View recipe, without --cache.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field of the view recipe.")
@click.option("--sample", required=True, metavar="KEY", help="Key of the sample.")
@click.option("--views", "num_views", default=8, show_default=True, type=click.IntRange(1))
@click.option("--first-view", default=0, show_default=True, type=click.IntRange(0))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A PNG.")
@_shard_cache
def show_views(
    shards: str,
    cache: str | None,
    recipe_name: str,
    sets: tuple[str, ...],
    sample: str,
    num_views: int,
    first_view: int,
    out: Path,
    shard_cache: Path | None,
) -> None:
    """A contact sheet of what the teacher saw: views with parameters, partners and, with --cache, its top classes."""
    from contextlib import ExitStack

    from shards.index.reader import ShardReader
    from shards.index.shard_index import open_index
    from shards.views.view_recipe import recipe_named
    from teacher_cache.inspect.sheet import sheet_views, top_classes, write_sheet
    from teacher_cache.store.spec import require_index
    from teacher_cache.store.zarr_store import TeacherCache

    index = open_index(shards, shard_cache)
    views = range(first_view, first_view + num_views)
    with ExitStack() as stack:
        reader = stack.enter_context(ShardReader(index, shard_cache))
        top = None
        if cache:
            opened = stack.enter_context(TeacherCache.open(cache))
            require_index(opened.spec, index.fingerprint, opened.url)
            recipe, views = opened.spec.recipe, range(first_view, min(first_view + num_views, opened.num_views))
            top = top_classes(opened, index, *index.find(sample), views)
        else:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in _pairs("--set", sets).items()}
            recipe = recipe_named(recipe_name, **values)
        columns = sheet_views(reader, recipe, sample, views, top)
    write_sheet(out, f"{sample}, recipe {recipe.name}, seed {recipe.seed}", columns)
    click.echo(out)


# --- stage 2 ----------------------------------------------------------------------------------------------------------

_student = _options(
    click.option("--model", default="deit_tiny_distilled_patch16_224", show_default=True, help="See `models`."),
    click.option("--recipe", help="A student recipe by name; default: the model's own. See `models`."),
    click.option("--stage", default=0, show_default=True, type=click.IntRange(0), help="0 trains, 1 fine-tunes."),
    click.option("--epochs", type=click.IntRange(1)),
    click.option("--batch-size", type=click.IntRange(1), help="Global: over all processes."),
    click.option("--config", type=click.Path(path_type=Path), help="A TOML file of recipe fields."),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any recipe field; view.FIELD for views."),
)  # fmt: skip
_training = _options(
    click.option("--seed", default=0, show_default=True, help="Initial weights, order, drop path."),
    _precision,
    click.option("--accumulate", default=1, show_default=True, type=click.IntRange(1), help="Micro-batches per step."),
    click.option("--compile", is_flag=True, help="torch.compile the student."),
    click.option("--log-every", default=50, show_default=True, type=click.IntRange(1), metavar="STEPS"),
    click.option(
        "--checkpoint-every", default=0, show_default=True, type=click.IntRange(0), metavar="STEPS",
        help="Also within an epoch; 0: at its end.",
    ),
    click.option("--eval-every", default=1, show_default=True, type=click.IntRange(1), metavar="EPOCHS"),
    _device,
    _shard_cache,
    _workers("Rendering processes per rank."),
)  # fmt: skip


def _student_recipe(model: str, recipe: str | None, stage: int, given: dict[str, Any], cached: Any) -> Any:
    """The recipe of a student from its model, the flags that were given, and the views of the cache if there is one."""
    from student.recipe.overrides import override
    from student.recipe.student_recipe import recipe_for, student_recipe_named, with_cache_views

    chosen = student_recipe_named(recipe, model=model) if recipe else recipe_for(model, stage=stage, with_cache=cached)
    chosen = override(chosen, given)
    return with_cache_views(chosen, cached, explicit=given) if cached else chosen


def _given(config: Path | None, sets: tuple[str, ...], **flags: Any) -> dict[str, Any]:
    """Recipe fields the user set: the file, then --set, then flags."""
    from student.recipe.overrides import parse_sets, read_toml

    values = read_toml(config) if config else {}
    return values | parse_sets(sets) | {name: value for name, value in flags.items() if value is not None}


@cli.command("train-student")
@_shards
@click.option("--val-shards", help="Shards to evaluate on.")
@click.option("--cache", help="The teacher cache. Without it: --distill none, or --online.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory; an unfinished run goes on.")
@click.option("--distill", type=click.Choice(["none", "hard", "soft"]), help="Default: the recipe's.")
@click.option("--lambda", "distill_weight", type=float, help="λ, weight of the distillation loss in [0, 1].")
@click.option("--tau", "temperature", type=float, help="τ, temperature of the soft loss.")
@_student
@click.option("--online", is_flag=True, help="Run the teacher in the loop instead of reading a cache.")
@_teacher
@click.option("--views-used", type=click.IntRange(1), help="Cycle through the first so many views of the cache.")
@_training
def train_student(
    shards: str,
    val_shards: str | None,
    cache: str | None,
    out: Path,
    online: bool,
    **flags: Any,
) -> None:
    """Train a DeiT student from shards and a teacher cache: any λ, any τ, hard or soft.

    Run the same command again to go on after a kill. Under torchrun every process is one rank.
    """
    from contextlib import ExitStack

    from shards.index.shard_index import open_index
    from shards.world import world_from_env
    from student.run.loop import train
    from teacher_cache.store.zarr_store import TeacherCache

    if cache and online:
        raise ValueError("--online: runs the teacher in the loop; drop it, or drop --cache")
    names = ("distill", "distill_weight", "temperature", "epochs", "batch_size")
    given = _given(flags["config"], flags["sets"], **{name: flags[name] for name in names})
    settings = _train_settings(flags)
    with ExitStack() as stack:
        opened = stack.enter_context(TeacherCache.open(cache)) if cache else None
        recipe = _student_recipe(
            flags["model"], flags["recipe"], flags["stage"], given, opened.spec.recipe if opened else None
        )
        world = world_from_env()
        network = _load_teacher(flags, recipe.view_recipe, settings.precision, world.local_rank) if online else None
        _show_training(
            train(
                recipe,
                open_index(shards, flags["shard_cache"]),
                settings=settings,
                out=out,
                cache=opened,
                teacher=network,
                val_index=open_index(val_shards, flags["shard_cache"]) if val_shards else None,
                shard_cache_dir=flags["shard_cache"],
                world=world,
            )
        )


def _train_settings(flags: dict[str, Any]) -> Any:
    from dataclasses import fields

    from student.recipe.settings import TrainSettings

    names = {field.name for field in fields(TrainSettings)}
    return TrainSettings(**{k: v for k, v in flags.items() if k in names} | {"device": _chosen_device(flags["device"])})


def _show_training(events: Any) -> None:
    """Draw the events of one or several students; exits with the code of a stop."""
    from shards.world import world_from_env

    display = _TrainingDisplay(quiet=world_from_env().rank > 0)
    for event in events:
        display.show(event)
    display.close()


class _TrainingDisplay:
    """One bar for the pass, one line per student and epoch."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._bar, self._steps_per_epoch = quiet, None, 1

    def show(self, event: Any) -> None:
        """Draw one event of `student.run.run_events`."""
        from student.run import run_events as events

        if isinstance(event, events.Stopped):
            self.close()
            say(f"stopped after step {event.step}, everything is saved; run the same command again to go on")
            raise click.exceptions.Exit(event.exit_code)
        if self._quiet:
            return
        match event:
            case events.Scheduled():
                self._begin(event)
            case events.Resumed():
                self._say(f"resumed after step {event.step}")
                if event.world_size != event.world_size_before:
                    self._say(
                        f"world size was {event.world_size_before}, is {event.world_size}: same batches, other rounding"
                    )
                self._bar.start_at(event.step)
            case events.CheckpointRejected():
                self._say(f"warning: {event.path}: {event.reason}; going on from an earlier checkpoint")
            case events.Stepped():
                self._bar.to(event.step, _figures(event.metrics, ("loss", "images_per_s", "data_wait_share")))
            case events.EpochEnded():
                self._bar.to(event.step)
                shown = _figures(event.metrics, ("base_loss", "distill_loss", "teacher_agreement", "images_per_s"))
                tops = _figures(event.validation, ("top1", "cls_top1", "dist_top1"))
                self._say(f"{event.student}  epoch {event.epoch + 1}  {shown}  {tops}")
            case events.StudentFailed():
                self._say(f"error: {event.student}: {event.error}")
            case events.StudentFinished():
                self._say(f"{event.student}: done, {event.out}")
                click.echo(_figures(event.summary, ("top1", "cls_top1", "dist_top1", "pixels_checked")))

    def _begin(self, event: Any) -> None:
        steps = event.epochs * event.steps_per_epoch
        spans = "; ".join(
            f"epochs {s.first_epoch + 1}-{s.last_epoch + 1}: views {s.first_view}-{s.last_view}"
            for s in event.views[:4]
        )
        more = f" … {len(event.views) - 4} more passes" if len(event.views) > 4 else ""
        say(
            f"{', '.join(event.students)}: {event.epochs} epochs of {event.steps_per_epoch} steps of {event.batch_size}"
        )
        say(f"views: {spans}{more}; samples left out of each pass (no full block or batch): {event.num_left_out}")
        self.close()
        self._bar = Bar("train", steps, "steps")

    def _say(self, text: str) -> None:
        (self._bar.say if self._bar else say)(text)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


def _figures(values: Any, names: tuple[str, ...]) -> str:
    """Some numbers of a mapping, by name, those that are there."""
    return "  ".join(f"{name} {values[name]:.4g}" for name in names if isinstance(values.get(name), (int, float)))


@cli.command("evaluate")
@_shards
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="A student's .safetensors.")
@click.option("--model", help="Needed when the file does not say it.")
@_precision
@_device
@_shard_cache
@_workers("Rendering processes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    shards: str,
    weights: Path,
    model: str | None,
    precision: str,
    device: str | None,
    shard_cache: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Top-1 and top-5 of a student on shards: every sample counted exactly once."""
    import json

    import torch

    from shards.index.reader import ShardReader
    from shards.index.shard_index import open_index
    from shards.views.view_recipe import ViewRecipe
    from shards.world import World
    from student.learn.evaluation import eval_batches, eval_views
    from student.learn.evaluation import evaluate as run
    from student.run.export import load_student

    index = open_index(shards, shard_cache)
    network, info = load_student(weights, model=model)
    if info.num_classes != index.num_classes:
        raise ValueError(f"--weights: answer {info.num_classes} classes, the shards have {index.num_classes}")
    target = torch.device(_chosen_device(device))
    views = eval_views(info.recipe, ViewRecipe(mean=info.mean, std=info.std))
    with ShardReader(index, shard_cache) as reader, Bar("evaluate", index.num_samples, "samples") as bar:
        for event in run(
            network.to(target),
            eval_batches(reader, views, world=World(), workers=workers),
            views=views,
            num_samples=index.num_samples,
            num_own=index.num_samples,
            device=target,
            precision=precision,
        ):
            bar.to(event.num_done)
    result = event.result
    assert result is not None, "the last event carries the result"
    n = result.num_samples
    rows = {head: {"top1": 100 * result.top1[head] / n, "top5": 100 * result.top5[head] / n} for head in result.top1}
    crop = f"short side {round(views.size / views.crop_pct)}, centre {views.size}"
    if as_json:
        click.echo(json.dumps({"num_samples": n, "crop": crop, "num_not_finite": result.num_not_finite, **rows}))
        return
    click.echo(f"{n} samples, {crop}")
    for head, row in rows.items():
        click.echo(f"  {head:8} top-1 {row['top1']:6.2f} %   top-5 {row['top5']:6.2f} %")


@cli.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", required=True, type=click.Path(path_type=Path))
@click.option("--model", help="Needed when the file does not say it.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1))
@_device
def predict(images: tuple[Path, ...], weights: Path, model: str | None, top: int, device: str | None) -> None:
    """The likeliest classes of image files, with their names."""
    from student.run.export import load_student
    from student.run.export import predict as run

    network, info = load_student(weights, model=model)
    for answer in run(network, info, images, top=top, device=_chosen_device(device)):
        click.echo(f"{answer.path}")
        for number, name, probability in answer.classes:
            click.echo(f"  {100 * probability:6.2f} %  {name if name != str(number) else f'class {number}'}")


@cli.command("models")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
def models(name: str | None, as_json: bool) -> None:
    """The DeiT students and their recipes; with NAME, that name explained piece by piece."""
    import json

    from student.recipe.zoo import MODELS, explain

    if name:
        explained = explain(name)
        click.echo(json.dumps(explained.to_json(), ensure_ascii=False) if as_json else _explanation(explained))
        return
    rows = [entry.to_json() for entry in MODELS.values()]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    click.echo(f"{'model':34} {'dim/depth/heads':>16} {'M par.':>7} {'GMACs':>7} {'top-1':>6}  recipe")
    for row in rows:
        shape = f"{row['dim']}/{row['depth']}/{row['heads']}"
        top = f"{row['top1_published']:.1f}" if row["top1_published"] else "–"
        taught = f"  teacher {row['teacher']}" if row["teacher"] else ""
        click.echo(
            f"{row['name']:34} {shape:>16} {row['params_m']:7.2f} {row['gmacs']:7.2f} {top:>6}  "
            f"{' then '.join(row['recipes'])}{taught}"
        )


def _explanation(explained: Any) -> str:
    """A model's name piece by piece, and its stages as a table."""
    lines = [explained.entry.name, ""]
    lines += [f"  {piece:12} {meaning}" for piece, meaning in explained.pieces]
    lines += ["", f"  {'stage':36} {'output':>18} {'parameters':>12} {'MMACs':>9}"]
    for stage in explained.stages:
        name = stage.name + (f" (× {stage.times})" if stage.times > 1 else "")
        lines.append(f"  {name:36} {stage.shape:>18} {stage.params:12,} {stage.macs / 1e6:9.1f}")
    lines.append(f"  {'all':36} {'':>18} {explained.params:12,} {explained.macs / 1e6:9.1f}")
    return "\n".join(lines + ([f"\n  note: {explained.entry.note}"] if explained.entry.note else []))


# --- ablations --------------------------------------------------------------------------------------------------------


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """A comma-separated list of numbers."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{option}: expected numbers separated by commas, got {text!r}") from None


@cli.command("ablate")
@_shards
@click.option("--val-shards", required=True, help="Shards to evaluate on.")
@click.option("--cache", required=True, help="The teacher cache that all cells read.")
@click.option("--lambda", "weights", default="0,.1,.5,.9", show_default=True, help="Values of λ; 0 is the baseline.")
@click.option("--tau", "temperatures", default="1,2,4,8", show_default=True, help="Values of τ; hard cells ignore it.")
@click.option("--distill", "distillations", default="hard,soft", show_default=True)
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Students per cell.")
@click.option("--first-seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--views-used", help="Numbers of views to cycle through, such as 6,30,300; default: all of the cache.")
@click.option(
    "--together", default=1, show_default=True, type=click.IntRange(1), help="Students per pass over the data."
)
@click.option(
    "--spread", is_flag=True, help="Under torchrun: each process takes its own cells, each cell on one device."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Sweep directory; what is missing is trained."
)
@_student
@_training
def ablate(
    shards: str,
    val_shards: str,
    cache: str,
    weights: str,
    temperatures: str,
    distillations: str,
    seeds: int,
    first_seed: int,
    views_used: str | None,
    together: int,
    spread: bool,
    out: Path,
    **flags: Any,
) -> None:
    """Train a λ × τ map of students from one cache; run it again to resume, to retry what failed, or to add cells."""
    from shards.index.shard_index import open_index
    from shards.world import world_from_env
    from student.sweep.cell_training import SweepTraining, cache_facts
    from student.sweep.grid import Grid
    from teacher_cache.store.zarr_store import TeacherCache

    world = world_from_env()
    if world.size > 1 and not spread:
        raise ValueError("ablate: under torchrun give --spread, which shares the cells out, each to one device")
    grid = Grid(
        weights=_numbers("--lambda", weights),
        temperatures=_numbers("--tau", temperatures),
        distillations=tuple(word.strip() for word in distillations.split(",")),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        views_used=tuple(int(v) for v in _numbers("--views-used", views_used)) if views_used else (None,),
    )
    given = _given(flags["config"], flags["sets"], epochs=flags["epochs"], batch_size=flags["batch_size"])
    settings = _train_settings(flags)
    with TeacherCache.open(cache) as opened:
        index, val = open_index(shards, flags["shard_cache"]), open_index(val_shards, flags["shard_cache"])
        recipe = _student_recipe(flags["model"], flags["recipe"], flags["stage"], given, opened.spec.recipe)
        training = SweepTraining(
            recipe=recipe,
            settings=settings,
            index=index,
            cache=opened,
            val_index=val,
            shard_cache_dir=flags["shard_cache"],
            local_rank=world.local_rank,
        )
        # GPUs are one to a process; the memory of the machine is shared by all that torchrun has started on it.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if settings.device == "cpu" else 1
        training.check(grid, together=together, sharing=local)
        _show_sweep(out, grid, training, cache_facts(opened, grid.temperatures), together, world)


def _show_sweep(out: Path, grid: Any, training: Any, facts: Any, together: int, world: Any) -> None:
    """Run the sweep and draw it; exits with 1 when cells have failed, with the trainer's code when it was stopped."""
    from student.sweep.sweep_loop import run_sweep

    display, event = _TrainingDisplay(quiet=world.rank > 0), None
    for event in run_sweep(
        out, grid, training.train, common=training.common(), facts=facts, together=together, world=world
    ):
        if event.kind == "progress":
            display.show(event.event)
            continue
        display.close()
        failed = f", {event.num_failed} failed" if event.num_failed else ""
        counts = f"{event.num_done} of {event.num_total} cells done{failed}"
        match event.kind:
            case "planned" | "finished":
                say(f"{out}: {counts}")
            case "started":
                say(f"training {', '.join(event.names)}")
            case "failed":
                say(f"error: {', '.join(event.names)}: {event.message}; {counts}; run the same command to retry")
    if event is not None and event.num_failed:
        raise click.exceptions.Exit(1)


# --- looking at what is there -----------------------------------------------------------------------------------------


@cli.command("cache-status")
@click.argument("cache")
@click.option("--fidelity", "measure", is_flag=True, help="Also the error of the records per τ, from kept full logits.")
@click.option(
    "--max-units", default=256, show_default=True, type=click.IntRange(1), help="Units that --fidelity reads."
)
@click.option("--png", type=click.Path(path_type=Path), help="Write the coverage as a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cache_status(cache: str, measure: bool, max_units: int, png: Path | None, as_json: bool) -> None:
    """Coverage, bytes per view, speed and what is missing of CACHE; with --fidelity its true error per τ."""
    import json

    from teacher_cache.inspect import status as status_of
    from teacher_cache.store.zarr_store import TeacherCache

    with TeacherCache.open(cache) as opened:
        status = status_of.cache_status(opened)
        rows = status_of.cache_fidelity(opened, max_units=max_units) if measure else []
        spec = opened.spec
    if png is not None:
        status_of.save_picture(status, png)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "spec": spec.to_json(),
                    "fingerprint": spec.fingerprint,
                    "units_done": int(status.done_BS.sum()),
                    "units": int(status.done_BS.size),
                    "whole_views": status.num_whole_views,
                    "bytes_per_view": sum(status.bytes_per_view.values()),
                    "bytes_per_view_by_array": status.bytes_per_view,
                    "fidelity": [row.to_json() for row in rows],
                }
            )
        )
        return
    for line in status_of.status_lines(status):
        click.echo(line)
    teacher, record = spec.teacher, spec.record
    click.echo(f"teacher {teacher.name} ({teacher.precision}), weights sha256 {teacher.weights_sha256[:16]}…")
    click.echo(f"record {record.kind}, k = {record.k}, {record.num_classes} classes; recipe {spec.recipe.name}")
    click.echo(f"spec fingerprint {spec.fingerprint}")
    if measure and not rows:
        click.echo("fidelity: records of this kind are exact, or hold no probabilities: nothing to measure")
    if rows:
        click.echo(f"{'τ':>5} {'G':>8} {'KL mean':>10} {'KL p99':>10}   error of these records, from kept full logits")
        for row in rows:
            click.echo(f"{row.temperature:5g} {row.gradient_error:8.4f} {row.kl:10.2e} {row.kl_p99:10.2e}")


@cli.command("verify-cache")
@click.argument("cache")
@click.option("--shards", help="With --deep: the shards it was made from.")
@click.option("--deep", is_flag=True, help="Also render a sample of blocks anew and compare their pixel digests.")
@click.option("--blocks", default=64, show_default=True, type=click.IntRange(1), help="Blocks that --deep checks.")
@click.option("--teacher", help="Also ask this teacher, a timm classifier, again about those blocks; implies --deep.")
@_teacher_files
@click.option("--tolerance", type=float, help="Largest total variation of a repeated answer; default by precision.")
@click.option("--repair", is_flag=True, help="Take damaged units out of the ledger; cache-teacher computes them again.")
@click.option("--seed", default=0, show_default=True, help="Of the sample.")
@_device
@_shard_cache
def verify_cache(
    cache: str,
    shards: str | None,
    deep: bool,
    blocks: int,
    teacher: str | None,
    tolerance: float | None,
    repair: bool,
    seed: int,
    shard_cache: Path | None,
    **flags: Any,
) -> None:
    """Check every digest of CACHE; deeper: render again, ask the teacher again. Exit code 1 when anything is wrong."""
    from shards.index.reader import ShardReader
    from shards.index.shard_index import open_index
    from teacher_cache.inspect import verify
    from teacher_cache.store.zarr_store import TeacherCache

    if teacher is None and (flags["teacher_weights"] or flags["teacher_args"]):
        raise ValueError("--teacher-weights, --teacher-arg: whose? give --teacher NAME as well")
    deep = deep or teacher is not None
    if deep and shards is None:
        raise ValueError("--deep: renders again, so it needs --shards")
    problems = 0
    with TeacherCache.open(cache, writable=repair) as opened:
        units = opened.num_view_blocks * opened.num_shards
        problems += _show_findings("digests", units, "units", verify.verify_digests(opened, repair=repair))
        if deep and shards is not None:
            index, spec = open_index(shards, shard_cache), opened.spec
            with ShardReader(index, shard_cache) as reader:
                if teacher is None:
                    found = verify.verify_pixels(opened, index, reader, num_blocks_to_check=blocks, seed=seed)
                else:
                    network = _load_teacher(flags | {"teacher": teacher}, spec.recipe, spec.teacher.precision)
                    found = verify.verify_teacher(
                        opened, index, reader, network, num_blocks_to_check=blocks, seed=seed, tolerance=tolerance
                    )
                problems += _show_findings("teacher" if teacher else "pixels", blocks, "blocks", found)
    if problems:
        say(f"{problems} problems" + (": taken out of the ledger; run cache-teacher again" if repair else ""))
        raise click.exceptions.Exit(1)


def _show_findings(what: str, total: int, unit: str, findings: Any) -> int:
    problems = checked = views = 0
    distance = 0.0
    with Bar(f"verify {what}", total, unit) as bar:
        for finding in findings:
            checked, views, distance = checked + 1, views + finding.num_views, max(distance, finding.distance)
            if finding.problem:
                problems += 1
                bar.say(f"  {finding.problem}")
            bar.to(min(checked, total))
    worst = f", largest total variation {distance:.4f}" if what == "teacher" else ""
    click.echo(f"{what}: {checked} checked, {views} views{worst}, {problems or 'no'} problem{'s'[: problems != 1]}")
    return problems


@cli.command("cost")
@click.option("--cache", help="Take samples, views and bytes from a cache that is there.")
@click.option("--num-samples", default=1_281_167, show_default=True, type=click.IntRange(1), help="Without --cache.")
@click.option("--views", "num_views", default=300, show_default=True, type=click.IntRange(1), help="Without --cache.")
@click.option("--bytes", "num_bytes", default=64.0, show_default=True, help="Per view, without --cache.")
@click.option("--model", default="deit_tiny_distilled_patch16_224", show_default=True, help="The student.")
@click.option("--teacher-gmacs", default=15.96, show_default=True, help="Of the teacher: RegNetY-16GF.")
@click.option("--epochs", default=300, show_default=True, type=click.IntRange(1))
@click.option("--students", default=12, show_default=True, type=click.IntRange(1), help="Runs that share the cache.")
@click.option("--together", default=1, show_default=True, type=click.IntRange(1), help="Students per pass.")
@click.option("--gpus", default=8, show_default=True, type=click.IntRange(1))
@click.option("--cores", default=96, show_default=True, type=click.IntRange(1), help="CPU cores that render, in all.")
@click.option("--tflops", default=60.0, show_default=True, help="Sustained by one GPU; where no rate is given.")
@click.option("--teacher-rate", type=float, help="Teacher forwards per second and GPU, when known.")
@click.option("--student-rate", type=float, help="Training images per second and GPU, when known.")
@click.option("--view-rate", default=700.0, show_default=True, help="Views per second and core, one per decode.")
@click.option("--unit-view-rate", default=1300.0, show_default=True, help="The same with several views per decode.")
@click.option("--measure", is_flag=True, help="Measure every rate that is not given, here and now, instead.")
@click.option("--teacher", default="regnety_160.deit_in1k", show_default=True, help="For --measure; needs no weights.")
@click.option("--shards", help="For --measure: images to render; default: synthetic ones.")
@click.option("--probe-batch", default=16, show_default=True, type=click.IntRange(1), help="Batch of --measure.")
@click.option("--seconds", default=5.0, show_default=True, help="How long --measure takes per rate.")
@_precision
@_device
@_shard_cache
def cost(
    cache: str | None,
    num_samples: int,
    num_views: int,
    num_bytes: float,
    model: str,
    teacher_gmacs: float,
    tflops: float,
    teacher_rate: float | None,
    student_rate: float | None,
    view_rate: float,
    unit_view_rate: float,
    measure: bool,
    **flags: Any,
) -> None:
    """Storage, hours with and without the cache, and break-even, before anything is spent; every assumption printed.

    Rates are those given, else arithmetic at --tflops, else with --measure those of this machine.
    """
    from student.cost.cost_estimate import Job, rates_from_flops, with_given
    from student.cost.cost_estimate import cost as predict_cost
    from student.recipe.student_recipe import unknown
    from student.recipe.zoo import MODELS, model_entry

    entry = model_entry(model)
    if entry is None and student_rate is None and not measure:
        raise ValueError(unknown("model", model, MODELS) + "; for another model give --student-rate")
    if cache:
        from teacher_cache.inspect.status import cache_status as status_of
        from teacher_cache.store.zarr_store import TeacherCache

        with TeacherCache.open(cache) as opened:
            num_samples, num_views = int(opened.rows_S.sum()), opened.num_views
            num_bytes = sum(status_of(opened).bytes_per_view.values()) or num_bytes
    given = {"teacher": teacher_rate, "student": student_rate}
    if measure:
        for name, rate, flag in (("views", view_rate, "view_rate"), ("unit_views", unit_view_rate, "unit_view_rate")):
            if click.get_current_context().get_parameter_source(flag) is not click.core.ParameterSource.DEFAULT:
                given[name] = rate
        rates = _measured_rates(model, flags)
    else:
        rates = rates_from_flops(
            teacher_gmacs=teacher_gmacs,
            student_gmacs=entry.gmacs if entry else 1.0,
            tflops=tflops,
            views=view_rate,
            unit_views=unit_view_rate,
        )
    job = Job(
        num_samples=num_samples,
        num_views=num_views,
        bytes_per_view=num_bytes,
        epochs=flags["epochs"],
        num_students=flags["students"],
        num_gpus=flags["gpus"],
        num_cores=flags["cores"],
        together=flags["together"],
    )
    for line in predict_cost(job, with_given(rates, given)).lines:
        click.echo(line)


def _measured_rates(model: str, flags: dict[str, Any]) -> Any:
    """The rates of this machine; the speed of a teacher does not depend on its weights."""
    from shards.index.shard_index import open_index
    from shards.views.view_recipe import recipe_named
    from student.cost.rates import calibrate
    from student.recipe.settings import TrainSettings
    from teacher_cache.network.teacher import load_teacher

    device, views = _chosen_device(flags["device"]), recipe_named("deit")
    index = open_index(flags["shards"], flags["shard_cache"]) if flags["shards"] else None
    num_classes = index.num_classes if index else 1000
    say(f"measuring for {4 * flags['seconds']:.0f} s")
    network = load_teacher(
        flags["teacher"],
        num_classes=num_classes,
        precision=flags["precision"],
        device=device,
        pretrained=False,
        input_size=views.size,
        view_mean=views.mean,
        view_std=views.std,
    )
    return calibrate(
        _student_recipe(model, None, 0, {}, views),
        views,
        TrainSettings(precision=flags["precision"], device=device),
        network,
        num_classes=num_classes,
        batch_size=flags["probe_batch"],
        index=index,
        seconds=flags["seconds"],
    )


@cli.command("export")
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--model", help="Needed when the file does not say it.")
def export(weights: Path, dest: Path, model: str | None) -> None:
    """Write WEIGHTS as a .safetensors DEST that plain timm loads, with a model card beside it."""
    from student.run.export import export_weights, load_student, model_card, timm_call

    if dest.suffix != ".safetensors":
        raise ValueError(f"DEST: expected a file name ending in .safetensors, got {dest.name!r}")
    network, info = load_student(weights, model=model)
    dest.parent.mkdir(parents=True, exist_ok=True)
    export_weights(network, dest, info)
    card = dest.with_suffix(".md")
    card.write_text(model_card(info, dest.name), encoding="utf-8")
    click.echo(f"{dest}\n{card}\n{timm_call(info, str(dest))}")


@cli.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--html", type=click.Path(path_type=Path), help="Default: report.html in the sweep or beside the first run."
)
@click.option("--png", "png_dir", type=click.Path(path_type=Path), help="Also figures as PNG, in this folder.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Also a table as CSV.")
def report(runs: tuple[Path, ...], html: Path | None, png_dir: Path | None, csv_path: Path | None) -> None:
    """One self-contained HTML page of several RUNS, or of one sweep."""
    from student.report.write import write_report

    files = write_report(runs, html=html, png_dir=png_dir, csv_path=csv_path)
    for path in (files.html, *files.pngs, *([files.csv] if files.csv else [])):
        click.echo(path)


if __name__ == "__main__":
    cli()
