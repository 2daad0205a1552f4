"""What the operating system refuses is one clean line that names the file and the remedy, in every command."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli import COMMANDS, SectionedCommand, cli
from shards.errors import ArtefactError, CacheError, ShardError, advising, system_words
from shards.pool.workers import in_workers
from teacher_cache.network import hub
from teacher_cache.network.timm_network import require_published
from tests.golden import SETS
from tests.golden.make import NUM_VIEWS, cache_command

ROOT = Path(__file__).parent.parent
TRAIN = ("--shards", "train", "--out", "o")


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(SETS[-1], tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    return tmp_path / "set"


def refused(*words: str) -> str:
    """The message of a command that must fail in one clean line or paragraph, with exit code 1 or 2."""
    result = CliRunner().invoke(cli, list(words))
    assert result.exit_code in (1, 2), result.output
    assert "defect" not in result.output and "Traceback" not in result.output, result.output
    return result.output[result.output.index("rror: ") :]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(
            ("report", "run", "--html", "run/config.json/x.html"),
            "run/config.json to write it in, got a file",
            id="file as folder",
        ),
        pytest.param(("report", "run", "--html", "run"), "run", id="folder as file"),
        pytest.param(
            ("report", "run", "--csv", "loop/x.csv"), "folder loop to write it in, got no folder", id="symlink loop"
        ),
        pytest.param(("report", "run", "--png", "run/config.json"), "config.json", id="file as folder of figures"),
        pytest.param(("cache-status", "dense.zarr", "--png", "no/where/x.png"), "no/where", id="cache-status"),
        pytest.param(
            ("show-views", "--shards", "train", "--sample", "KEY", "--out", "no/x.png"), "no/x.png", id="show-views"
        ),
        pytest.param(("make-shards", "pictures", "run/config.json/x"), "config.json", id="make-shards"),
        pytest.param(("check-shards", "fifos"), "a FIFO", id="check-shards on a FIFO"),
        pytest.param(("check-shards", "run/config.json/x.tar"), "config.json", id="check-shards below a file"),
        pytest.param(("train-student", "--config", "/dev/zero", *TRAIN), "a device", id="config device"),
        pytest.param(("train-student", "--config", "fifo", *TRAIN), "a FIFO", id="config FIFO"),
        pytest.param(("verify-cache", "run/config.json"), "config.json", id="file as cache"),
        pytest.param(("predict", "--weights", "fifo.safetensors", "x.png"), "fifo.safetensors", id="weights FIFO"),
        pytest.param(("predict", "--weights", "run/weights.safetensors", "fifo"), "fifo", id="image FIFO"),
    ],
)
@pytest.mark.slow
def test_places_that_cannot_be(golden: Path, words: tuple[str, ...], said: str) -> None:
    os.symlink("loop", golden / "loop")
    os.mkfifo(golden / "fifo")
    os.mkfifo(golden / "fifo.safetensors")
    (golden / "fifos").mkdir()
    os.mkfifo(golden / "fifos/shard-000000.tar")
    for label in ("a", "b"):
        (golden / "pictures" / label).mkdir(parents=True)
        shutil.copy(ROOT / "tests/golden/v0.1.0/train/shard-000000.tar", golden / "pictures" / label / "x.jpg")
    key = _a_key()
    assert said in refused(*(key if word == "KEY" else word for word in words))


def _a_key() -> str:
    from shards.index.shard_index import open_index

    return open_index("train").key(0, 0)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from cli import cli
cli(sys.argv[2:])
"""


@pytest.mark.parametrize(
    "words",
    [
        ("report", "run", "--html", "x.html"),
        ("check-shards", "train", "--overwrite"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_one_clean_line(golden: Path, words: tuple[str, ...]) -> None:
    """A limit on the size of files stands for it: the write fails in the middle."""
    done = _run([sys.executable, "-c", LIMITED, "1024", *words], golden)
    assert done.returncode == 1 and _is_clean(done.stderr), done.stderr
    assert "larger file" in done.stderr or "too large" in done.stderr, done.stderr


@pytest.mark.parametrize("command", ["models", "--help", "make-shards --help"])
@pytest.mark.parametrize("output", ["full", "closed"])
def test_standard_output_that_cannot_be_written(golden: Path, command: str, output: str) -> None:
    redirect = ">/dev/full" if output == "full" else ">&-"
    done = _run(["sh", "-c", f"{sys.executable} {ROOT / 'cli.py'} {command} {redirect}"], golden)
    if (command, output) != ("models", "closed") and output == "closed":
        assert done.returncode == 0  # click's own, and nobody asked to read it
        return
    assert done.returncode == 1 and _is_clean(done.stderr) and "standard output" in done.stderr, done.stderr


@pytest.mark.slow
def test_nobody_reads_standard_error(golden: Path) -> None:
    """A log that cannot be written ends no run."""
    done = _run(["sh", "-c", f"{sys.executable} {ROOT / 'cli.py'} cache-status dense.zarr 2>/dev/full"], golden)
    assert done.returncode == 0 and "chunks" in done.stdout


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False)


def _is_clean(said: str) -> bool:
    return said.count("error: ") == 1 and "Traceback" not in said and "defect" not in said and "ignored" not in said


def _read_only(folder: Path) -> Callable[[], None]:
    """Mount a folder read-only over itself; what takes it away again. Skips where that is not allowed."""
    mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    return lambda: subprocess.run(["umount", folder], check=True) and None


def test_a_finished_cache_on_a_read_only_disk_is_read_without_a_lock(golden: Path) -> None:
    restore = _read_only(golden / "dense.zarr")
    try:
        command = cache_command(Path(), "dense")
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0 and "0 teacher forwards" in result.output, result.output
        grown = cache_command(Path(), "dense", views=2 * NUM_VIEWS["dense"])
        assert "Read-only file system" in refused(*grown)
    finally:
        restore()


def test_a_read_only_folder_is_named_with_what_to_do(golden: Path) -> None:
    (golden / "out").mkdir()
    restore = _read_only(golden / "out")
    try:
        assert "choose a place that can be written" in refused("report", "run", "--html", "out/x.html")
    finally:
        restore()


FORBIDDEN = [
    (("report", "run"), "run/config.json"),
    (("report", "run"), "run/metrics.jsonl"),
    (("report", "sweep"), "sweep/sweep.json"),
    (("report", "run", "--html", "out/x.html"), "out"),
    (("check-shards", "train", "--workers", "0"), "train/shard-000000.tar"),
    (("check-shards", "train", "--workers", "0"), "train/shards.index"),
    (("make-shards", "pictures", "out/new", "--workers", "0"), "out"),
    (("make-shards", "pictures", "new", "--workers", "0"), "pictures/c0/0.png"),
    (("verify-cache", "dense.zarr"), "dense.zarr/zarr.json"),
    (("verify-cache", "dense.zarr"), "dense.zarr/logit/c/0/0/0/0"),
    (("copy-cache", "dense.zarr", "out/c.zarr"), "out"),
    (("predict", "image.png", "--weights", "run/weights.safetensors"), "image.png"),
    (("predict", "image.png", "--weights", "run/weights.safetensors"), "run/weights.safetensors"),
    (("export", "run/weights.safetensors", "out/x.safetensors"), "out"),
    (("train-student", "--config", "s.toml", *TRAIN), "s.toml"),
]
"""Commands, and what of their files or folders this user may not touch."""

WITHOUT = """
import ctypes, json, os, sys
from click.testing import CliRunner
from tests.campaign_process import cli  # with the imports of all commands

def obey_modes():  # as root does not, whom nothing keeps out: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc, head, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, sets) == 0
    sets[0] &= ~0b110
    assert libc.capset(head, sets) == 0

for words, path in json.load(sys.stdin):
    before = os.stat(path).st_mode
    os.chmod(path, 0o500 if os.path.isdir(path) else 0)
    if os.fork() == 0:
        obey_modes()
        result = CliRunner().invoke(cli, words)
        os.write(1, json.dumps([result.exit_code, result.output]).encode() + b"\\n")
        os._exit(0)
    os.wait()
    os.chmod(path, before)
"""


@pytest.mark.slow
def test_what_a_user_may_not_touch_is_named_with_what_to_do(golden: Path) -> None:
    (golden / "out").mkdir()
    (golden / "s.toml").write_text("[view]\n")
    (golden / "pictures/c0").mkdir(parents=True)
    (golden / "pictures/c1").mkdir()
    for path in (golden / "image.png", golden / "pictures/c0/0.png", golden / "pictures/c1/1.png"):
        Image.new("RGB", (40, 40), (len(str(path)) % 200, 9, 9)).save(path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=json.dumps(FORBIDDEN), capture_output=True, text=True, cwd=golden,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    wrong = []
    for (words, path), (code, said) in zip(FORBIDDEN, map(json.loads, done.stdout.splitlines()), strict=True):
        clean = said.count("rror: ") <= 1 and "Traceback" not in said and "defect" not in said
        if code not in (1, 2) or not clean or Path(path).name not in said or "ermission" not in said:
            wrong.append(f"{' '.join(words)} without {path}: exit code {code}: {said[-400:]}")
    assert not wrong, "\n".join(wrong)


def test_words_for_an_error_without_a_file_or_number() -> None:
    assert system_words(OSError("odd")) == "odd; check the path and the disk, and run the command again"
    assert system_words(FileNotFoundError(2, "No such file or directory", "x")).startswith("x: no such file")


def out_of_gpu_memory() -> Exception:
    words = "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1.00 GiB is free"
    return torch.OutOfMemoryError(words)


def dead_worker() -> Exception:
    """What the parent says of a worker that the system ended."""
    with pytest.raises(ArtefactError) as dead:
        list(in_workers(os._exit, [7], workers=1))
    return dead.value


MEMORY = ("--workers", "--batch-size")
OF_WORKERS = (errno.EAGAIN, errno.EMFILE, errno.ENOMEM)


@pytest.mark.parametrize(
    ("fault", "helpful"),
    [
        pytest.param(MemoryError, MEMORY, id="memory"),
        pytest.param(lambda: RuntimeError("can't start new thread"), MEMORY, id="threads"),
        pytest.param(lambda: RuntimeError("could not create a primitive"), (*MEMORY, "--precision"), id="oneDNN"),
        pytest.param(dead_worker, MEMORY, id="a worker killed"),
        pytest.param(
            out_of_gpu_memory, ("--batch-size", "--accumulate", "--precision", "--device"), id="memory of the GPU"
        ),
        *(
            pytest.param(
                lambda number=number: OSError(number, os.strerror(number)),
                ("--workers",) if number in OF_WORKERS else (),
                id=name,
            )
            for number, name in errno.errorcode.items()
        ),
    ],
)
def test_what_helps_against_a_full_machine_is_said_in_flags_that_the_command_has(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[], Exception], helpful: tuple[str, ...]
) -> None:
    """Every command, though it may never meet the fault: no advised flag is another command's."""

    def fail(*_: object) -> None:
        raise fault()

    monkeypatch.setattr(SectionedCommand, "parse_args", lambda *_: [])
    monkeypatch.setattr(SectionedCommand, "invoke", fail)
    wrong = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        fitting = {flag for param in command.params for flag in param.opts} & set(helpful)
        advised = set(re.findall(r"(?<![\w-])--[a-z-]+", refused(name)))
        if not advised <= fitting or bool(advised) != bool(fitting):
            wrong.append(f"{name}: advises {sorted(advised)}, helpful and its own are {sorted(fitting)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", [ShardError, CacheError, ValueError])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE], ids=errno.errorcode.get)
def test_too_many_open_files_are_no_fault_of_what_was_to_be_read(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], number: int
) -> None:
    def fail(*_: object) -> None:
        try:
            raise OSError(number, os.strerror(number), "x.tar")
        except OSError:
            raise kind("x.tar is damaged; copy it again") from None

    monkeypatch.setattr(SectionedCommand, "parse_args", lambda *_: [])
    monkeypatch.setattr(SectionedCommand, "invoke", fail)
    ended = CliRunner().invoke(cli, ["models"])
    assert ended.exit_code == 1
    assert ended.output.startswith("error: x.tar: too many open files")
    assert "damaged" not in ended.output


def test_what_ends_a_thread_of_a_library_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events.out")

    def invoke(*_: object) -> None:
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    monkeypatch.setattr(SectionedCommand, "invoke", invoke)
    assert cli.main(["models"], standalone_mode=False) is None
    said = capfd.readouterr().err
    assert (
        said == "a background thread ended: events.out: no space left on device; make room, or choose another place\n"
    )


@pytest.mark.parametrize("name", ["distill", "train-teacher", "cache-teacher", "train-student", "verify-cache"])
def test_weights_that_cannot_be_fetched_are_given_by_a_flag_that_the_command_has(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`train-teacher --pretrained` advised --teacher-weights, which is of cache-teacher."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    flags = {flag for param in command.params for flag in param.opts}
    monkeypatch.setattr(hub, "_unreachable", lambda _: "no route to host")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    faults = (
        lambda: require_published("test_no_such_network"),
        lambda: hub.hub_weights_without_network(SimpleNamespace(hf_hub_id="timm/x"), "x"),
    )
    for fault in faults:
        with advising(flags), pytest.raises(ValueError, match="weights") as refused:
            fault()
        advised = set(re.findall(r"(?<![\w-])--[a-z-]+", str(refused.value)))
        assert advised <= flags and bool(advised) == (name != "distill"), str(refused.value)


FEW_FILES = """
import resource, sys
from pathlib import Path
import numpy as np
from click.testing import CliRunner
from PIL import Image
from cli import COMMANDS, cli

rng = np.random.default_rng(0)
for label in ("ant", "bee"):
    Path("train", label).mkdir(parents=True)
    for n in range(560):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(f"train/{label}/{n}.png")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
shards, cache, weights = "--shards S", "--cache C.zarr", "R/weights.safetensors"
teacher = "--teacher-weights T/weights.safetensors --size 32 --views 3 --views-per-unit 3 --workers 1"
student = "--model resnet10t --epochs 1 --batch-size 160 --workers 1"
ran = set()
for line in (
    "make-shards train S --samples-per-shard 16 --workers 2",
    "check-shards S --overwrite --workers 2",
    f"train-teacher {shards} {student} --size 32 --out T",
    f"plan-cache {shards} {teacher} --batch-size 16 --seconds 1",
    f"cost {shards}",
    "check-machine",
    f"show-views {shards} --out views.png",
    f"cache-teacher {shards} {teacher} {cache}",
    "cache-status C.zarr",
    f"verify-cache C.zarr --deep {shards}",
    "copy-cache C.zarr D.zarr",
    f"train-student {shards} {cache} {student} --distill soft --out R",
    f"ablate {shards} --val-shards S {cache} {student} --distill soft --lambda 0.5 --tau 2 --out A",
    f"evaluate --weights {weights} {shards} --workers 1",
    f"export {weights} X.safetensors",
    f"predict train/ant/0.png --weights {weights}",
    "report A",
    "models",
    "recipes",
):
    result = CliRunner().invoke(cli, line.split())
    if result.exit_code:
        sys.exit(f"{line}: {result.output}")
    ran.add(line.split()[0])
left = COMMANDS.keys() - ran - {"distill"}  # which calls the others
sys.exit("not run: " + " ".join(left) if left else 0)
"""


@pytest.mark.slow
def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    """ImageNet has as many shards as a process may usually have open files: no command opens all at once."""
    done = _run([sys.executable, "-c", FEW_FILES], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
