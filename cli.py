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
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from shards import __version__
from shards.console import STANDARD_OUTPUT, drop_output, flush_output, hold_standard_streams, say, shortened
from shards.errors import ArtefactError, device_words, system_words
from shards.platforms import require_unix
from shards.signals import interrupt_once, requeue_at_once
from shards.text.escapes import visible

COMMANDS = {
    "make-shards": "shards.commands:make_shards",
    "check-shards": "shards.commands:check_shards",
    "train-teacher": "student.commands.train_teacher:train_teacher",
    "cache-teacher": "teacher_cache.commands.cache_teacher:cache_teacher",
    "plan-cache": "teacher_cache.commands.plan_cache:plan_cache",
    "check-machine": "teacher_cache.commands.check_machine:check_machine",
    "show-views": "teacher_cache.commands.show_views:show_views",
    "train-student": "student.commands.train_student:train_student",
    "evaluate": "student.commands.evaluate:evaluate",
    "predict": "student.commands.predict:predict",
    "models": "student.commands.models:models",
    "recipes": "student.commands.models:recipes",
    "ablate": "student.commands.ablate:ablate",
    "cache-status": "student.commands.cache_status:cache_status",
    "verify-cache": "teacher_cache.commands.verify_cache:verify_cache",
    "copy-cache": "teacher_cache.commands.copy_cache:copy_cache",
    "cost": "student.commands.cost:cost",
    "export": "student.commands.export:export",
    "report": "student.commands.report:report",
}
"""Every command and where it is, in the order of the job, not of the alphabet."""

REQUEUED = frozenset({"train-teacher", "cache-teacher", "copy-cache", "train-student", "ablate"})
"""What a scheduler starts again until it is done: a signal ends these with 75 from their first moment on."""

EXAMPLES = {
    "make-shards": (
        "make-shards photos/train shards/train",
        "make-shards photos/val shards/val --class-names classes.txt --workers 8",
    ),
    "check-shards": (
        "check-shards 'wds/train-{000000..001023}.tar'",
        "check-shards wds --label-key label --ignore-suffix bbox.json",
    ),
    "cache-teacher": (
        "cache-teacher --shards shards/train --cache teacher.zarr --views 300",
        "cache-teacher --shards shards/train --cache t.zarr --views 60 \\\n"
        "    --teacher regnety_002 --teacher-weights runs/t/weights.safetensors --record dense",
    ),
    "plan-cache": ("plan-cache --shards shards/train --views 300 --bytes 48 --gpus 8",),
    "show-views": (
        "show-views --shards shards/train --out some.png",
        "show-views --shards shards/train --cache teacher.zarr --sample cat/0001 --out cat.png",
    ),
    "train-teacher": ("train-teacher --shards shards/train --pretrained efficientnet_lite0 --out runs/t",),
    "train-student": (
        "train-student --shards shards/train --cache teacher.zarr --out runs/hard",
        "train-student --shards shards/train --val-shards shards/val --cache teacher.zarr \\\n"
        "    --distill soft --lambda .9 --tau 2 --epochs 100 --set lr=0.001 --out runs/soft",
        "train-student --shards shards/train --distill none --model resnet18 --out runs/alone",
    ),
    "evaluate": ("evaluate --shards shards/val --weights runs/soft/weights.safetensors",),
    "predict": (
        "predict cat.jpg photos/new --weights runs/soft/weights.safetensors",
        "predict photos/new --weights runs/soft/weights.safetensors --json > answers.jsonl",
    ),
    "models": ("models", "models deit_tiny_distilled_patch16_224"),
    "recipes": ("recipes", "recipes deit3_small"),
    "ablate": (
        "ablate --shards shards/train --val-shards shards/val --cache teacher.zarr \\\n"
        "    --lambda 0,.5,.9 --tau 1,2,4 --together 4 --out sweeps/map",
    ),
    "cache-status": ("cache-status teacher.zarr", "cache-status teacher.zarr --fidelity --json"),
    "verify-cache": (
        "verify-cache teacher.zarr",
        "verify-cache teacher.zarr --deep --shards shards/train",
        "verify-cache teacher.zarr --repair",
    ),
    "check-machine": ("check-machine", "check-machine --cache teacher.zarr"),
    "copy-cache": ("copy-cache teacher.zarr s3://bucket/teacher.zarr",),
    "cost": ("cost --num-samples 1281167 --views 300 --gpus 8", "cost --cache teacher.zarr"),
    "export": ("export runs/soft/weights.safetensors out/student.safetensors",),
    "report": ("report sweeps/map", "report runs/hard runs/soft --html report.html --csv report.csv"),
}
"""Lines at the end of the help of each command, without the program's name: one job, from photos to a report."""


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
        if args:
            ctx.with_resource(requeue_at_once() if args[0] in REQUEUED else interrupt_once())
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        command.epilog = _examples(ctx.find_root().info_name or "deit-cache", EXAMPLES.get(cmd_name, ()))
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and bring what was said to standard output; that it cannot be written is an error like any other."""
        try:
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
            with _visible_errors():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt:
            _fail(ctx, "interrupted; run the same command again to go on", 130)
        except ArtefactError as error:
            _fail(ctx, str(error), 1)
        except ValueError as error:
            _fail(ctx, str(error), 2)
        except OSError as error:
            _fail(ctx, system_words(_of_output(error)), 1)
        except RecursionError:
            _fail(ctx, "something that was read is nested too deeply; is it damaged? Run again with --debug", 1)
        except MemoryError:
            _fail(ctx, "not enough memory; lower the batch size or --workers, or use a machine with more", 1)
        except Exception as error:
            defect = f"{type(error).__name__}: {error}\nThis is a defect; run again with --debug."
            _fail(ctx, device_words(error) or defect, 1)


@contextlib.contextmanager
def _visible_errors() -> Iterator[None]:
    """click prints its own errors, which quote arguments: a shell puts names of files there."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = visible(error.message)  # declared final, printed by click itself
        raise


def _examples(program: str, lines: Sequence[str]) -> str:
    """The examples as an epilog that click does not wrap (\b)."""
    program = f"python {program}" if program.endswith(".py") else program
    return "\b\nExamples:\n" + "\n".join(f"  {program} {line}" for line in lines) if lines else ""


def _of_output(error: OSError) -> OSError:
    """The error; it names standard output where it came from click's own printing (a text of help, say)."""
    steps = list(traceback.walk_tb(error.__traceback__))
    if error.filename is None and steps[-1][0].f_globals.get("__name__", "").startswith("click"):
        error.filename = STANDARD_OUTPUT
    return error


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    if ctx.params.get("debug"):
        say(traceback.format_exc())
    drop_output()
    with contextlib.suppress(OSError):  # standard error may be what cannot be written
        say(f"error: {message if ctx.params.get('debug') else shortened(message)}")
    ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="deit-teacher-cache")
def cli(debug: bool) -> None:
    """Distil DeiT students from a teacher that runs once.

    \b
    make-shards     images      → WebDataset shards + index
    train-teacher   shards      → a teacher of your own classes, from published weights
    cache-teacher   shards      → teacher cache: one small record per view      (stage 1, GPU)
    train-student   shards+cache → DeiT student, any λ, any τ, hard or soft     (stage 2, no teacher)
    ablate          cache       → a λ × τ map of students
    """


if __name__ == "__main__":
    hold_standard_streams()
    cli()
