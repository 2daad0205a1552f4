"""The command line: the group, a table of commands that are imported when they are asked for, errors → exit codes.

    0    done
    1    an artefact is wrong (shards, cache, run): the message says what, where, expected / got, next step
    2    a wrong argument
    75   stopped by a signal with everything saved: run the same command again to go on
    130  interrupted by Ctrl-C: in training and stage 1 with everything saved, like 75

A command turns its flags into frozen values, calls one function of a package and shows the events it yields. Heavy
libraries are imported inside the commands, so that --help answers at once.
"""

import contextlib
import importlib
import re
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import click

from shards import __version__
from shards.console import STANDARD_OUTPUT, close_bars, drop_output, flush_output, hold_standard_streams, say, shortened
from shards.errors import ArtefactError, advising, device_words, no_memory_words, system_words, too_many_files
from shards.names import nearest
from shards.platforms import require_unix
from shards.signals import end_at_interrupt, end_program, interrupt_at_once, interrupt_once, requeue_at_once
from shards.text.escapes import visible
from shards.world import world_from_env


class Entry(NamedTuple):
    """A command: its package, its group in the help, what it does in a few words, its module if that is called else."""

    package: str
    group: str
    summary: str
    module: str = ""


START, LOOK, PLAN, KEEP = "Start here", "Look at results", "Plan and compare", "Caches and tables"
COMMANDS = {
    "distill": Entry("student", START, "From photos to a student and a report."),
    "make-shards": Entry("shards", START, "Pack images into shards (tar files)."),
    "check-shards": Entry("shards", START, "Check shards, yours or others', and index them."),
    "train-teacher": Entry("student", START, "Fine-tune a teacher on your own classes."),
    "cache-teacher": Entry("teacher_cache", START, "Run the teacher once and store its answers."),
    "train-student": Entry("student", START, "Train a student from the cache."),
    "evaluate": Entry("student", LOOK, "Measure the accuracy of a student."),
    "predict": Entry("student", LOOK, "Classify image files."),
    "report": Entry("student", LOOK, "Compare runs in one HTML page."),
    "show-views": Entry("teacher_cache", LOOK, "Draw the augmented views of an image."),
    "export": Entry("student", LOOK, "Write a student for timm and other tools."),
    "plan-cache": Entry("teacher_cache", PLAN, "Measure size and time of a cache."),
    "cost": Entry("student", PLAN, "Estimate storage and hours by arithmetic."),
    "ablate": Entry("student", PLAN, "Train a grid of students over λ and τ."),
    "models": Entry("student", PLAN, "List the students and their recipes."),
    "recipes": Entry("student", PLAN, "List recipes and explain their fields.", "models"),
    "cache-status": Entry("student", KEEP, "Show what a cache holds and how exact it is."),
    "verify-cache": Entry("teacher_cache", KEEP, "Check every part of a cache."),
    "copy-cache": Entry("teacher_cache", KEEP, "Copy, cut or shrink a cache."),
    "check-machine": Entry("teacher_cache", KEEP, "Check that this machine renders the same pixels."),
}
"""Every command, by group and in the order of use."""

SECTIONS = {
    "Data": ("shards", "shard_cache", "shard_cache_limit", "val_shards", "cache", "caches", "out", "views_used"),
    "Views": ("views", "recipe_name", "size", "view_seed", "--view-set", "views_per_unit"),
    "Stored logits": ("record_kind", "top_k", "num_bytes"),
    "Loss": ("distill", "distill_weight", "temperature", "distillations", "weights", "temperatures"),
    "Student": ("model", "recipe", "stage", "config", "sets"),
    "Schedule": ("epochs", "budget", "batch_size", "seed", "seeds", "first_seed", "together", "spread"),
    "Teacher": (
        *("teacher", "teacher_weights", "teacher_ema", "teacher_classes", "teacher_args", "teacher_mean"),
        *("teacher_std", "pretrained", "init_weights", "online", "teacher_weight", "combine", "teachers"),
    ),
    "Machine": (
        *("device", "precision", "workers", "accumulate", "compile", "deterministic"),
        *("grad_checkpointing", "scratch", "skip_memory_check"),
    ),
    "Output": ("log_every", "checkpoint_every", "eval_every", "as_json", "png", "html"),
}
"""The sections of a long help, with the names of their options (spellings where two share a name); all others stand
under "Options"."""

_LONG_HELPS = frozenset({"train-teacher", "cache-teacher", "plan-cache", "train-student", "ablate"})
"""Commands whose options stand in these sections."""

REQUEUED = frozenset({"distill", "train-teacher", "cache-teacher", "copy-cache", "train-student", "ablate"})
"""What a scheduler starts again until it is done: a signal ends these with 75 from their first moment on."""

_RANKED = frozenset({"train-teacher", "cache-teacher", "train-student", "evaluate", "ablate"})
"""What several processes run together, each of which names itself in its errors."""

EXAMPLES = {
    "distill": ("distill photos --out work", "distill photos --out work --budget 60"),
    "make-shards": (
        "make-shards photos/train data/train",
        "make-shards photos/val data/val --class-names classes.txt --workers 8",
    ),
    "check-shards": (
        "check-shards 'wds/train-{000000..001023}.tar'",
        "check-shards wds --label-key label --ignore-suffix bbox.json",
    ),
    "cache-teacher": (
        "cache-teacher --shards data/train --cache teacher.zarr --views 300",
        "cache-teacher --shards data/train --cache t.zarr --views 60 \\\n"
        "    --teacher regnety_002 --teacher-weights runs/t/weights.safetensors --record dense",
    ),
    "plan-cache": ("plan-cache --shards data/train --views 300 --bytes 48 --gpus 8",),
    "show-views": (
        "show-views --shards data/train --out some.png",
        "show-views --shards data/train --cache teacher.zarr --sample cat/0001 --out cat.png",
    ),
    "train-teacher": ("train-teacher --shards data/train --pretrained efficientnet_lite0 --out runs/t",),
    "train-student": (
        "train-student --shards data/train --cache teacher.zarr --out runs/hard",
        "train-student --shards data/train --val-shards data/val --cache teacher.zarr \\\n"
        "    --distill soft --lambda 0.9 --tau 2 --epochs 100 --set lr=0.001 --out runs/soft",
        "train-student --shards data/train --distill none --model resnet18 --out runs/alone",
    ),
    "evaluate": ("evaluate --shards data/val --weights runs/soft/weights.safetensors",),
    "predict": (
        "predict cat.jpg photos/new --weights runs/soft/weights.safetensors",
        "predict photos/new --weights runs/soft/weights.safetensors --json > answers.jsonl",
    ),
    "models": ("models", "models deit_tiny_distilled_patch16_224"),
    "recipes": ("recipes", "recipes deit3_small"),
    "ablate": (
        "ablate --shards data/train --val-shards data/val --cache teacher.zarr \\\n"
        "    --lambda 0,.5,.9 --tau 1,2,4 --together 4 --out sweeps/map",
    ),
    "cache-status": ("cache-status teacher.zarr", "cache-status teacher.zarr --fidelity --json"),
    "verify-cache": (
        "verify-cache teacher.zarr",
        "verify-cache teacher.zarr --deep --shards data/train",
        "verify-cache teacher.zarr --repair",
    ),
    "check-machine": ("check-machine", "check-machine --cache teacher.zarr"),
    "copy-cache": ("copy-cache teacher.zarr s3://bucket/teacher.zarr",),
    "cost": ("cost --num-samples 1281167 --views 300 --gpus 8", "cost --cache teacher.zarr"),
    "export": ("export runs/soft/weights.safetensors out/student.safetensors",),
    "report": ("report sweeps/map", "report runs/hard runs/soft --html report.html --csv report.csv"),
}
"""Lines at the end of the help of each command, without the program's name: one job, from photos to a report."""


_WHO = "deit_cache.who"
"""Key of click's `Context.meta` for the name of this process among several."""
_NO_NUMBER = re.compile(r"is not a valid integer( range)?\b")
_EXPECTED = re.compile(r"x>=[01]|0<=x<=\d{4,}")
"""Bounds that no reader wants to be told."""


class SectionedCommand(click.Command):
    """A command whose options stand in sections where there are many."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an error says what to type instead of a word, an option or a number that the command does not take."""
        typed, ctx.allow_extra_args = list(args), True
        try:
            rest = super().parse_args(ctx, args)
            if rest and not ctx.resilient_parsing:
                ctx.fail("")
        except click.UsageError as error:
            from student.commands.word_options import usage_words

            vars(error).update(message=usage_words(self, ctx, typed, error), possibilities=None)
            raise
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each section under its title."""
        title_of = {name: title for title, names in SECTIONS.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*SECTIONS, "Options")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                title = (
                    title_of.get(param.opts[0]) or title_of.get(param.name or "", "Options")
                    if self.name in _LONG_HELPS
                    else "Options"
                )
                sections[title].append(_plain_record(*record))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _plain_record(name: str, text: str) -> tuple[str, str]:
    """Return the help of an option without bounds that everybody expects: "at least 1" of a count."""
    name = re.sub(r"(INTEGER|FLOAT) RANGE|\bINTEGER\b", "N", name)
    words, bracket, extra = text.rpartition("  [")
    if bracket:
        extras = [part for part in extra.removesuffix("]").split("; ") if not _EXPECTED.fullmatch(part)]
        text = f"{words}  [{'; '.join(extras)}]" if extras else words
    return name, text


class Commands(click.Group):
    """A group that imports a command when it is asked for, and turns every error into one clean message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """--debug counts wherever it stands: one adds it to the end of a line that has just failed."""
        end = args.index("--") if "--" in args else len(args)
        words = [word for word in args[:end] if word != "--debug"]
        debug = ["--debug"] if len(words) < end else []
        with _visible_errors():
            return super().parse_args(ctx, [*debug, *words, *args[end:]])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Before the command is imported: refuse other systems; from here on a signal to stop has its answer."""
        require_unix()
        if args and args[0] not in COMMANDS:
            near = nearest(args[0], (name.replace("-", "_") for name in COMMANDS))
            meant = f" Did you mean {' or '.join(near)}?".replace("_", "-") if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        if args and not ctx.resilient_parsing:  # of a shell that completes the line
            ctx.meta[_WHO] = _rank_name(args)
            ctx.obj.enter_context(requeue_at_once() if args[0] in REQUEUED else interrupt_once())
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            ctx.with_resource(advising(flag for param in (*self.params, *command.params) for flag in param.opts))
        return name, command, rest

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        from shards.commands.flags import TEXT  # half of the time that the help of all commands takes

        entry, name = COMMANDS[cmd_name], cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f"{entry.package}.commands.{entry.module or name}"), name)
        assert isinstance(command, click.Command)
        for param in command.params:
            param.type = TEXT if param.type is click.STRING else param.type
        return SectionedCommand(
            cmd_name,
            callback=command.callback,
            params=command.params,
            help=command.help,
            epilog=_examples(ctx.find_root().info_name or "deit-cache", EXAMPLES.get(cmd_name, ())),
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by group, without importing them."""
        for group in dict.fromkeys(entry.group for entry in COMMANDS.values()):
            with formatter.section(group):
                formatter.write_dl([(name, e.summary) for name, e in COMMANDS.items() if e.group == group])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and bring what was said to standard output; that it cannot be written is an error like any other."""
        try:
            with interrupt_at_once():  # click would say "Aborted!" of one that comes before a command, or after it
                try:
                    return super().main(*args, **kwargs)
                finally:
                    flush_output()
        except OSError as error:
            error = _of_output(error)
            drop_output()
            say(f"error: {system_words(error)}")
            raise SystemExit(1) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors end in `_fail`, with the exit codes above."""
        try:
            # ctx's own resources end too late, in click
            with contextlib.ExitStack() as ctx.obj, _visible_errors(), _short_threads(ctx):
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt:
            _fail(ctx, "interrupted; run the same command again to go on", 130)
        except (ArtefactError, ValueError, OSError) as error:
            _fail(ctx, *_words(error))
        except RecursionError:
            _fail(ctx, "something that was read is nested too deeply; is it damaged? Run again with --debug", 1)
        except MemoryError:
            _fail(ctx, no_memory_words(), 1)
        except Exception as error:
            defect = f"{type(error).__name__}: {error}\nThis is a defect; run again with --debug."
            _fail(ctx, device_words(error) or defect, 1)


@contextlib.contextmanager
def _visible_errors() -> Iterator[None]:
    """Reword click's own errors: they quote arguments, where a shell puts names of files, and its names of types."""
    try:
        yield
    except click.ClickException as error:
        message = visible(_NO_NUMBER.sub("is not a whole number", error.message))
        vars(error)["message"] = message  # declared final, printed by click itself
        raise


@contextlib.contextmanager
def _short_threads(ctx: click.Context) -> Iterator[None]:
    """Say in one line what ends a thread of a library, without a traceback; who uses the thread then fails as well."""

    def ended(thread: threading.ExceptHookArgs) -> None:
        error = thread.exc_value
        words = system_words(error) if isinstance(error, OSError) else f"{thread.exc_type.__name__}: {error}"
        say(f"{ctx.meta.get(_WHO, '')}a background thread ended: {shortened(words)}")

    before = threading.excepthook
    threading.excepthook = before if ctx.params.get("debug") else ended
    try:
        yield
    finally:
        threading.excepthook = before


def _examples(program: str, lines: Sequence[str]) -> str:
    """The examples as an epilog that click does not wrap (\b)."""
    program = f"python {program}" if program.endswith(".py") else program
    return "\b\nExamples:\n" + "\n".join(f"  {program} {line}" for line in lines) if lines else ""


def _words(error: ArtefactError | ValueError | OSError) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if (limited := too_many_files(error)) is not None:
        return system_words(limited), 1  # the file that could not be read is not at fault
    if isinstance(error, OSError):
        return system_words(_of_output(error)), 1
    return str(error), 2 if isinstance(error, ValueError) else 1


def _of_output(error: OSError) -> OSError:
    """The error; it names standard output where it came from click's own printing (a text of help, say)."""
    steps = list(traceback.walk_tb(error.__traceback__))
    if error.filename is None and steps[-1][0].f_globals.get("__name__", "").startswith("click"):
        error.filename = STANDARD_OUTPUT
    return error


def _rank_name(words: Sequence[str]) -> str:
    """Name the process that runs this command line, before what it says: "rank 3 of 8: "; "" for one alone."""
    if words[0] not in _RANKED:
        return ""
    try:
        world = world_from_env(shared=words[0] == "cache-teacher" or "--spread" in words, decides=False)
    except ValueError:
        return ""  # the command says what is wrong with the variables
    return f"{world.name}: " if world.name else ""


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    close_bars()
    if ctx.params.get("debug"):
        say(traceback.format_exc())
    drop_output()
    with contextlib.suppress(OSError):  # standard error may be what cannot be written
        who = ctx.meta.get(_WHO, "")
        say(f"error: {who}{message if ctx.params.get('debug') else shortened(message)}")
    ctx.exit(code)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="deit-teacher-cache")
def cli(debug: bool) -> None:
    """Train DeiT students by distillation, and run the teacher network only once.

    \b
    images → make-shards → train-teacher (or a published one) → cache-teacher → train-student → report
    """


def program() -> None:
    """Run the command line as a process of its own: it owns the standard streams, and what Ctrl-C does at its end."""
    hold_standard_streams()
    try:
        cli()
    except SystemExit as end:
        end_program(end.code if isinstance(end.code, int) else 1)
        raise
    finally:
        end_at_interrupt()


if __name__ == "__main__":
    program()
