"""Signals while a command starts: it must say "run me again" from its first moments on, or no scheduler does."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.signals import INTERRUPTED_EXIT_CODE, REQUEUE_EXIT_CODE, StopRequest
from tests.term_at_start import commands, moments, save_teacher, start_and_term


@pytest.mark.slow
def test_term_at_random_moments_of_the_start_ends_with_75(tmp_path: Path) -> None:
    """`python -m tests.term_at_start` is the same with 50 moments that reach into the run."""
    save_teacher(tmp_path)
    lines = list(commands(tmp_path).items())
    for n, delay_s in enumerate(moments(10, seed=1, latest_s=2.5)):
        ended = start_and_term(*lines[n % len(lines)], delay_s)
        assert ended.code == REQUEUE_EXIT_CODE, ended


def test_a_command_that_nobody_requeues_dies_of_term_as_ever() -> None:
    code = "import os, signal\nfrom click.testing import CliRunner\nfrom cli import cli\nCliRunner().invoke(cli, "
    for words, handler in ((["models"], "SIG_DFL"), (["train-student"], "SIG_DFL")):
        said = subprocess.run(
            [sys.executable, "-c", f"{code}{words}); print(signal.getsignal(signal.SIGTERM).name)"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert said.strip() == handler, "the handler is gone with its command"


FORKING = """
import os, signal, time
from shards.signals import requeue_at_once
with requeue_at_once():
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(theirs, b"!")  # only now: Python forgets a signal that comes while it still forks
        time.sleep(60)
        os._exit(1)
    os.read(ours, 1)
    os.kill(pid, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_that_was_forked_meanwhile_dies_of_term() -> None:
    said = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True).stdout
    assert int(said) == -signal.SIGTERM


def test_the_first_ctrl_c_asks_and_the_second_ends() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.told and stop.exit_code == INTERRUPTED_EXIT_CODE
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.told and stop.exit_code == REQUEUE_EXIT_CODE


ENDING = """
import os, signal, sys
from shards.signals import StopRequest, interrupt_once, requeue_at_once
block, hits = {"requeued": requeue_at_once, "plain": interrupt_once}[sys.argv[1]], int(sys.argv[2])
class Hostile:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # an exception in here is printed and dropped by Python
def hit():
    for _ in range(hits):
        victim = Hostile()
        del victim
with block():
    if sys.argv[3] == "saving":
        with StopRequest() as stop:
            hit()
            os.write(1, b"saved")
        sys.exit(stop.exit_code)
    hit()
    os.write(1, b"went on")
"""


@pytest.mark.parametrize(
    "block, hits, where, said",
    [
        ("requeued", 1, "starting", "error: interrupted"),
        ("requeued", 1, "saving", "stopping soon"),
        ("requeued", 2, "saving", "error: interrupted"),
        ("requeued", 3, "saving", "error: interrupted"),
        ("plain", 2, "starting", "error: interrupted"),
        ("plain", 3, "starting", "error: interrupted"),
    ],
)
def test_ctrl_c_is_not_swallowed_wherever_it_comes(block: str, hits: int, where: str, said: str) -> None:
    """Where Python drops exceptions, as in a finaliser, a signal that ends a command still ends it, with 130."""
    words = [sys.executable, "-c", ENDING, block, str(hits), where]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "saved" if hits == 1 and where == "saving" else "")
    assert said in done.stderr and ("Traceback" in done.stderr) == (block == "plain")


READING = """
import io, pathlib, signal, sys, torch
from safetensors.torch import save_file
from teacher_cache.network.weights import read_weights

signal.signal(signal.SIGINT, signal.default_int_handler)
folder, calls, hit = pathlib.Path(sys.argv[1]), 0, 0

def counted(name):
    def call(self, *arguments):
        global calls
        calls += 1
        if calls == hit:
            signal.raise_signal(signal.SIGINT)
        return getattr(io.BufferedReader, name)(self, *arguments)
    return call

names = ("read", "readinto", "readline", "seek", "tell")
File = type("File", (io.BufferedReader,), {name: counted(name) for name in names})
pathlib.Path.open = lambda path, mode="r", *_: File(io.FileIO(path, mode))
state = {f"layer{n}": torch.arange(200.0) for n in range(3)}
torch.save(state, folder / "zip.pth")
torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
save_file(state, folder / "plain.safetensors")
for path in folder.iterdir():
    hit = calls = 0
    read_weights(path)
    number = calls
    assert number > 3, "it is not read through this file"
    for hit in range(1, number + 1):
        calls = 0
        try:
            said = f"read {len(read_weights(path).state)} tensors"
        except KeyboardInterrupt:
            continue
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(f"{path.name}, at call {hit} of {number}: {said}")
"""


def test_ctrl_c_at_every_read_of_a_weights_file_is_an_interrupt(tmp_path: Path) -> None:
    """torch's reader turns it into an error of its own, which says that the file cannot be read."""
    words = [sys.executable, "-c", READING, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "", "not interrupted"


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for words in (["--debug", "models", "deit_tny"], ["models", "deit_tny", "--debug"], ["models", "--debug", "x"]):
        done = subprocess.run([sys.executable, "cli.py", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "Traceback" in done.stderr


AROUND = """
import signal, sys
import click, cli
signal.signal(signal.SIGINT, signal.default_int_handler)
places = {"parsing": (cli.Commands, "parse_args"), "closing": (click.Context, "close"), "output": (cli, "flush_output")}
owner, name = places[sys.argv[1]]
former = getattr(owner, name)

def hit(*args):
    signal.raise_signal(signal.SIGINT)
    return former(*args)

setattr(owner, name, hit)
sys.argv = ["cli.py", "models"]
cli.program()
"""


@pytest.mark.parametrize("where", ["parsing", "closing", "output"])
def test_ctrl_c_around_a_command_is_said_as_what_it_is(where: str) -> None:
    """click says "Aborted!" and exits with 1, which is the code of an error."""
    root = Path(__file__).parents[1]
    words = [sys.executable, "-c", AROUND, where]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == INTERRUPTED_EXIT_CODE and "interrupted" in done.stderr, done.stderr


AT_EXIT = """
import atexit, os, signal, sys
import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["cli.py", "models"]
cli.program()
"""


def test_ctrl_c_while_python_shuts_down_prints_nothing() -> None:
    """The command is over and everything is saved: an exception would have nowhere to go but the terminal."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
