"""Every option that reads or writes a path, given each kind of thing that users of this project have.

The error says what lies there, ends with 1 or 2, and nothing that lies there is changed.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from PIL import Image

from cli import COMMANDS, cli
from shards.commands.flags import CacheParam, LocalPath
from shards.own_folder import kind_at
from tests.golden import SETS

SHARDS = ["--shards", "{here}/train"]
NET = ["--model", "resnet18"]
RUN = ["--weights", "{here}/run"]
WEIGHTS = ["--teacher", "resnet18", "--teacher-weights", "{here}/w.safetensors"]
STUDENT = ["train-student", *NET, "--out", "{new}/o"]
CACHED = ["--cache", "{here}/dense.zarr"]
ABLATE = ["ablate", *NET, "--out", "{new}/o"]
TEACHER = ["train-teacher", "--out", "{new}/o"]
MAKE = ["cache-teacher", "--cache", "{new}/c.zarr", "--views", "2"]
PHOTOS = ["make-shards", "{here}/photos"]
VIEWS = ["show-views", "--out", "{new}/v.png"]
REPORT = ["report", "{here}/run"]

KINDS = {
    "train": "shards",
    "shard.tar": "a shard",
    "dense.zarr": "a teacher cache",
    "run": "a run",
    "interrupted": "a run",
    "sweep": "a sweep",
    "w.safetensors": "a file of weights",
    "page.html": "an HTML page",
    "cat.png": "an image",
    "photos": "a folder of images",
    "empty": "an empty folder",
}
OTHER_WORDS = {"photos": ("got images or folders",), "empty": ("got none",), "cat.png": ("got one image",)}
TARS, OF_RUNS, IMAGES = {"train", "shard.tar"}, {"run", "w.safetensors"}, {"cat.png", "photos"}

READ: list[tuple[list[str], set[str]]] = [
    (["distill", "{x}", "--out", "{new}/o"], {"photos", "shard.tar"}),
    (["distill", "{here}/photos", "--out", "{new}/o", "--labels", "{x}"], set()),
    (["make-shards", "{x}", "{new}/o"], {"photos", "shard.tar"}),
    ([*PHOTOS, "{new}/o", "--labels", "{x}"], set()),
    ([*PHOTOS, "{new}/o", "--class-names", "{x}"], set()),
    (["check-shards", "{x}"], TARS),
    (["check-shards", "{here}/train", "--class-names", "{x}"], set()),
    ([*TEACHER, *NET, "--shards", "{x}"], TARS),
    ([*TEACHER, *NET, *SHARDS, "--val-shards", "{x}"], TARS),
    ([*TEACHER, *NET, *SHARDS, "--init-weights", "{x}"], OF_RUNS),
    ([*TEACHER, *NET, *SHARDS, "--config", "{x}"], set()),
    ([*TEACHER, *SHARDS, "--pretrained", "{x}"], set()),
    ([*MAKE, *WEIGHTS, "--shards", "{x}"], TARS),
    ([*MAKE, *SHARDS, "--teacher-weights", "{x}"], {*OF_RUNS, "shard.tar"}),
    ([*MAKE, *SHARDS, "--teacher", "resnet18", "--teacher-weights", "{x}"], OF_RUNS),
    ([*MAKE, *SHARDS, *WEIGHTS, "--teacher-classes", "{x}"], set()),
    ([*MAKE, *SHARDS, "--teacher", "local-dir:{x}"], set()),
    ([*STUDENT, *CACHED, "--shards", "{x}"], TARS),
    ([*STUDENT, *CACHED, *SHARDS, "--val-shards", "{x}"], TARS),
    ([*STUDENT, *SHARDS, "--cache", "{x}"], {"dense.zarr"}),
    ([*STUDENT, *CACHED, *SHARDS, "--config", "{x}"], set()),
    ([*STUDENT, *CACHED, *SHARDS, "--pretrained", "{x}"], OF_RUNS),
    ([*STUDENT, *CACHED, *SHARDS, "--set", "finetune=true", "--set", "init_weights={x}"], OF_RUNS),
    (
        [*STUDENT, *SHARDS, "--distill", "soft", "--online", "--teacher", "resnet18", "--teacher-weights", "{x}"],
        OF_RUNS,
    ),
    (["evaluate", *RUN, "--shards", "{x}"], TARS),
    (["evaluate", *SHARDS, "--weights", "{x}"], OF_RUNS),
    (["predict", *RUN, "{x}"], IMAGES),
    (["predict", "{here}/cat.png", "--weights", "{x}"], OF_RUNS),
    (["report", "--html", "{new}/r.html", "{x}"], {"run", "interrupted", "sweep"}),
    ([*REPORT, "--html", "{new}/r.html", "--teacher", "{x}"], {"run", "interrupted"}),
    ([*VIEWS, "--shards", "{x}"], TARS),
    ([*VIEWS, *SHARDS, "--cache", "{x}"], {"dense.zarr"}),
    (["export", "{x}", "{new}/e"], OF_RUNS),
    (["plan-cache", "--views", "2", "--teacher", "resnet18", "--shards", "{x}"], TARS),
    (["plan-cache", "--views", "2", *SHARDS, "--teacher-weights", "{x}"], OF_RUNS),
    (["cost", "--cache", "{x}"], {"dense.zarr"}),
    (["cost", "--shards", "{x}"], TARS),
    ([*ABLATE, *CACHED, "--val-shards", "{here}/val", "--shards", "{x}"], TARS),
    ([*ABLATE, *CACHED, *SHARDS, "--val-shards", "{x}"], TARS),
    ([*ABLATE, *SHARDS, "--val-shards", "{here}/val", "--cache", "{x}"], {"dense.zarr"}),
    ([*ABLATE, *CACHED, *SHARDS, "--val-shards", "{here}/val", "--config", "{x}"], set()),
    (["cache-status", "{x}"], {"dense.zarr"}),
    (["verify-cache", "{x}"], {"dense.zarr"}),
    (["verify-cache", "{here}/dense.zarr", "--deep", "--shards", "{x}"], TARS),
    (["copy-cache", "{x}", "{new}/c"], {"dense.zarr"}),
    (["check-machine", "--cache", "{x}"], {"dense.zarr"}),
]
"""Command lines with a path to read, and the things that belong there."""

_FOLDERS = {"empty"}
WRITTEN: list[tuple[list[str], set[str]]] = [
    ([*PHOTOS, "{x}"], {*_FOLDERS, "train"}),
    (["train-teacher", *NET, *SHARDS, "--out", "{x}"], {*_FOLDERS, "run", "interrupted"}),
    (["train-student", *NET, *SHARDS, *CACHED, "--out", "{x}"], {*_FOLDERS, "run", "interrupted"}),
    (["ablate", *NET, *SHARDS, *CACHED, "--val-shards", "{here}/val", "--out", "{x}"], {*_FOLDERS, "sweep"}),
    (["cache-teacher", "--views", "2", *SHARDS, *WEIGHTS, "--cache", "{x}"], {*_FOLDERS, "dense.zarr"}),
    (["copy-cache", "{here}/dense.zarr", "{x}"], {*_FOLDERS, "dense.zarr"}),
    (["show-views", *SHARDS, "--out", "{x}"], {"cat.png"}),
    (["evaluate", *SHARDS, *RUN, "--html", "{x}"], {"page.html"}),
    ([*REPORT, "--html", "{x}"], {"page.html"}),
    ([*REPORT, "--csv", "{x}"], {"page.html"}),
    (["export", "{here}/run", "{x}"], {*_FOLDERS, "w.safetensors"}),
    (["cache-status", "{here}/dense.zarr", "--png", "{x}"], {"cat.png"}),
]
"""Command lines with a path to write."""

CHILD = """
import json, os, sys
from click.testing import CliRunner
from tests.campaign_process import cli  # with the imports of all commands
for words in json.load(sys.stdin):
    if os.fork() == 0:
        result = CliRunner().invoke(cli, words)
        os.write(1, json.dumps([result.exit_code, result.output]).encode() + b"\\n")
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One thing of each kind, by the names of KINDS."""
    folder = tmp_path_factory.mktemp("things")
    for name in ("train", "val", "dense.zarr", "run", "interrupted", "sweep"):
        shutil.copytree(SETS[0] / name, folder / name)
    shutil.copy(next((SETS[0] / "train").glob("*.tar")), folder / "shard.tar")
    shutil.copy(SETS[0] / "teacher.safetensors", folder / "w.safetensors")
    (folder / "page.html").write_text("<!doctype html><title>students</title>")
    for name in ("photos/ant/1.png", "photos/bee/1.png", "cat.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / name)
    (folder / "empty").mkdir()
    return folder


def _answers(cases: list[tuple[list[str], set[str]]], here: Path, new: Path) -> Iterator[tuple[str, str, int, str]]:
    """Each line with each thing that does not belong there: the line, the thing, exit code, output."""
    rows = [(words, name) for words, right in cases for name in KINDS if name not in right]
    for number in range(len(rows)):
        (new / str(number)).mkdir()
    lines = [
        [word.format(here=here, new=new / str(number), x=here / name) for word in words]
        for number, (words, name) in enumerate(rows)
    ]
    done = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(lines), capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(rows), done.stderr
    for (words, name), (code, output) in zip(rows, answers, strict=True):
        yield " ".join(words), name, code, output


def _bytes_of(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_each_thing_is_called_what_it_is(here: Path) -> None:
    assert {name: kind_at(here / name).partition(" (")[0] for name in KINDS} == KINDS
    (here / "notes").mkdir(exist_ok=True)
    (here / "notes" / "a.txt").touch()
    assert kind_at(here / "notes") == "" == kind_at(here / "nothing")


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "named"), [(READ, True), (WRITTEN, False)], ids=["read", "written"])
def test_a_thing_in_the_wrong_place_is_named_and_left_alone(
    cases: list[tuple[list[str], set[str]]], named: bool, here: Path, tmp_path: Path
) -> None:
    """Files of text say that they got a folder or a binary file; places to write name the files in them."""
    before, wrong = _bytes_of(here), []
    for line, name, code, output in _answers(cases, here, tmp_path):
        said = " ".join(output.split())
        is_text = any(flag in line for flag in ("--labels {x}", "-names {x}", "-classes {x}"))
        what = [KINDS[name], *OTHER_WORDS.get(name, ()), *(["got a folder", "a binary file"] if is_text else [])]
        what += ["expected at least two classes", "have no label"] if is_text and name == "page.html" else []
        what += [] if named else ["got a f", "a file name ending", "got one", ".json", "would replace"]
        if code not in (1, 2) or "defect" in said or not any(words in said for words in what):
            wrong.append((line, name, code, said[-300:]))
    assert not wrong, "\n".join(map(str, wrong))
    assert _bytes_of(here) == before


def test_every_option_that_reads_a_path_stands_in_the_table() -> None:
    written = {"--out", "dest", "destination", "--skip-bad", "--shard-cache", "--scratch", "--png", "--csv", "--onnx"}
    paths = set()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for param in command.params:
            word = param.opts[0]
            is_path = isinstance(param.type, LocalPath | CacheParam) or word in ("--shards", "--val-shards")
            if is_path and word not in {*written, "--html"}:
                paths.add((name, word if word.startswith("-") else ""))
    tried = {(words[0], words[at - 1]) for words, _ in READ for at, word in enumerate(words) if word == "{x}"}
    tried = {(name, flag if flag.startswith("--") else "") for name, flag in tried}
    assert paths - tried == {
        ("cache-teacher", "--cache"),  # is written
        ("export", "--images"),  # after onnx, which is an extra
        ("verify-cache", "--teacher-weights"),
        ("copy-cache", "--shards"),
    }
