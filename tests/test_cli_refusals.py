"""What the user typed wrong is refused before torch is imported, in few words, and nothing is touched.

One process imports the command line and forks for each case, so that a case sees what it imports and nothing else.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
from PIL import Image

from cli import COMMANDS, cli
from shards.commands.flags import CacheParam, LocalPath
from tests.campaign_server import MoodyServer
from tests.golden import SETS
from tests.golden.make import STUDENT, TEACHER
from tests.object_servers import s3_variables

SET = SETS[0]
SHARDS = ["--shards", "{set}/train"]
CACHE = ["cache-teacher", *SHARDS, "--cache", "{tmp}/new.zarr", *TEACHER, "--views", "2"]
TRAIN = ["train-student", *SHARDS, "--cache", "{set}/dense.zarr", *STUDENT, "--out", "{tmp}/run"]
REMOTE = ["train-student", *SHARDS, "--cache", "https://nowhere.invalid/c.zarr", *STUDENT, "--out", "{tmp}/run"]
ABLATE = ["ablate", *SHARDS, "--val-shards", "{set}/val", "--cache", "{set}/dense.zarr", *STUDENT, "--out", "{tmp}/s"]

REFUSED: list[tuple[list[str], str]] = [
    ([*CACHE, "--view-seed", "-1"], "--view-seed"),
    ([*CACHE, "--workers", "100000"], "--workers"),
    ([*CACHE, "--set", "mixup=1"], "'mixup_alpha'"),
    ([*CACHE, "--set", "flip=nan"], "recipe.flip"),
    ([*CACHE, "--set", "size=64.5"], "recipe.size"),
    ([*CACHE, "--recipe", "diet"], "'deit'"),
    ([*CACHE, "--cache", ""], "--cache"),
    ([*CACHE, "--cache", "pipe:x"], "--cache"),
    ([*CACHE, "--cache", "ftp://host/x"], "--cache"),
    ([*CACHE, "--device", "gpu"], "--device"),
    ([*TRAIN, "--lambda", "2"], "--lambda"),
    ([*TRAIN, "--lambda", "nan"], "--lambda"),
    ([*TRAIN, "--tau", "0"], "--tau"),
    ([*TRAIN, "--tau", "inf"], "--tau"),
    ([*TRAIN, "--seed", "-1"], "--seed"),
    ([*TRAIN, "--views-used", "2.5"], "--views-used"),
    ([*TRAIN, "--out", ""], "--out"),
    ([*TRAIN, "--out", "s3://bucket/run"], "--out"),
    ([*TRAIN, "--out", "{tmp}/\udcff"], "expected a name in UTF-8"),
    ([*ABLATE, "--out", "{tmp}/\udcff"], "expected a name in UTF-8"),
    (["train-teacher", *SHARDS, "--out", "{tmp}/\udcff", "--model", "resnet18"], "expected a name in UTF-8"),
    ([*CACHE, "--teacher", "regnty_160"], "timm has no model 'regnty_160': the nearest is 'regnety_160'"),
    ([*CACHE, "--teacher", "regnety_160.deit"], "deit_in1k"),
    ([*CACHE, "--teacher-arg", "channels"], "KEY=VALUE"),
    ([*CACHE, "--record", "lowrnk"], "lowrank"),
    ([*CACHE, "--record", "hard", "--bytes", "9999"], "num_bytes"),
    ([*CACHE, "--views", "7", "--views-per-unit", "2"], "multiple"),
    ([*CACHE, "--set", "seed=3"], "--view-seed"),
    ([*CACHE, "--set", "block_views=3"], "--views-per-unit"),
    ([*CACHE, "--cache", "{set}/train"], "--cache"),
    ([*CACHE, "--cache", "{set}/run"], "--cache"),
    ([*CACHE, "--cache", "{set}/classes.txt"], "a file"),
    ([*CACHE, "--cache", "{set}/classes.txt/c.zarr"], "a file"),
    ([*TRAIN, "--model", "deit_tinny_distilled_patch16_224"], "the nearest is 'deit_tiny_distilled_patch16_224'"),
    ([*TRAIN, "--recipe", "diet"], "'deit'"),
    ([*TRAIN, "--set", "learning_rate=0.1"], "the nearest is 'lr'"),
    ([*TRAIN, "--set", "lr=nan"], "lr"),
    ([*TRAIN, "--set", "epochs=3"], "--set epochs=…: would be ignored"),
    ([*TRAIN, "--set", "clip_grad=-1"], "clip_grad"),
    ([*TRAIN, "--set", "view.flip=0.2"], "view.flip"),
    ([*TRAIN, "--cache", "{set}/../{set.name}/dense.zarr"], "is the same cache as"),
    ([*TRAIN, "--set", "model_args.checkpoint_path=/etc/passwd"], "model_args.checkpoint_path"),
    ([*TRAIN, "--set", "model_args.depth=1000000"], "at most 65536"),
    ([*ABLATE, "--set", "model_args.pretrained=true"], "model_args.pretrained"),
    ([*CACHE, "--teacher-arg", "checkpoint_path=/etc/passwd"], "--teacher-arg checkpoint_path"),
    ([*TRAIN, "--config", "{set}/run/summary.json"], "TOML"),
    ([*TRAIN, "--distill", "hard", "--tau", "2"], "--tau: would be ignored"),
    ([*TRAIN, "--distill", "none", "--lambda", "0.5"], "--lambda: would be ignored"),
    ([*TRAIN, "--teacher", "resnet18"], "--teacher: would be ignored"),
    ([*TRAIN, "--recipe", "deit", "--stage", "1"], "--stage: would be ignored"),
    ([*TRAIN, "--recipe", "deit_finetune384", "--set", "image_size=32"], "init_weights"),
    ([*TRAIN, "--online"], "--online"),
    ([*TRAIN, "--out", "{set}/train"], "--out"),
    ([*TRAIN, "--out", "{set}/dense.zarr"], "--out"),
    ([*TRAIN, "--out", "{set}/sweep"], "--out"),
    ([*TRAIN, "--shards", ""], "shards"),
    ([*TRAIN, "--shards", "pipe:cat"], "pipe:"),
    (["train-student", *SHARDS, *STUDENT, "--distill", "hard", "--out", "{tmp}/run"], "give --cache"),
    ([*ABLATE, "--set", "distill=hard"], "give --distill"),
    ([*ABLATE, "--set", "temperature=2"], "give --tau"),
    ([*ABLATE, "--views-used", "2.5"], "integers"),
    ([*ABLATE, "--views-used", "nan"], "--views-used"),
    ([*ABLATE, "--views-used", ""], "an empty one"),
    ([*ABLATE, "--teachers", ""], "an empty one"),
    ([*ABLATE, "--first-seed", str((1 << 63) - 1), "--seeds", "2"], "below 2**63"),
    ([*ABLATE, "--lambda", "nan"], "--lambda"),
    ([*ABLATE, "--lambda", ".5,,1"], "--lambda"),
    ([*ABLATE, "--lambda", "1.5"], "[0, 1]"),
    ([*ABLATE, "--tau", "-1"], "tau"),
    ([*ABLATE, "--distill", "hard", "--tau", "2"], "--tau: would be ignored"),
    ([*ABLATE, "--distill", "soft,sft"], "soft"),
    ([*ABLATE, "--out", "{set}/run"], "--out"),
    ([*ABLATE, "--model", "resnt18"], "'resnet18'"),
    ([*TRAIN, "--batch-size", "100"], "give a batch size of at most 24"),
    ([*TRAIN, "--batch-size", "6"], "expected a multiple of 4, such as 4 or 8"),
    ([*TRAIN, "--accumulate", "3"], "an --accumulate that makes them 1 or 2"),
    ([*ABLATE, "--batch-size", "100"], "give a batch size of at most 24"),
    ([*ABLATE, "--accumulate", "3"], "an --accumulate that makes them 1 or 2"),
    (["train-teacher", *SHARDS, "--out", "{tmp}/t", "--model", "resnet18", "--batch-size", "100"], "block_size"),
    (["report", "{set}/run", "--png", "{set}/classes.txt"], "expected a folder, got a file"),
    (["report", "{set}/run", "--teacher", "150"], "percent"),
    (["train-teacher", *SHARDS, "--out", "{tmp}/t"], "give --pretrained NAME"),
    (["train-teacher", *SHARDS, "--out", "{tmp}/t", "--pretrained", "resnt18"], "'resnet18'"),
    (["train-teacher", *SHARDS, "--out", "{tmp}/t", "--model", "resnet18", "--set", "learning_rate=1"], "'lr'"),
    (["train-teacher", *SHARDS, "--out", "{set}/train", "--model", "resnet18"], "--out"),
    (["train-teacher", *SHARDS, "--out", "{tmp}/t", "--model", "resnet18", "--seed", "-1"], "--seed"),
    ([*CACHE, "--teacher", ""], "--teacher"),
    ([*CACHE, "--set", "name=x"], "--view-recipe"),
    ([*TRAIN, "--views-used", "100"], "--views-used: expected at most 4"),
    ([*TRAIN, "--val-shards", ""], "--val-shards"),
    (["show-views", *SHARDS, "--out", "{tmp}/no/x.png"], "no folder"),
    (["show-views", *SHARDS, "--out", "{tmp}/x.jpg"], ".png"),
    (["show-views", *SHARDS, "--cache", "{set}/dense.zarr", "--set", "flip=0", "--out", "{tmp}/x.png"], "--cache"),
    (["cache-status", "{set}/dense.zarr", "--png", "{set}/train"], ".png"),
    (["cache-status", "{set}/dense.zarr", "--png", "{tmp}/no/x.png"], "no folder"),
    (["report", "{set}/run", "--html", "{set}/train"], "got a folder"),
    (["report", "{set}/run", "--csv", "{set}/classes.txt/x.csv"], "got a file"),
    (["export", "{set}/run/weights.safetensors", "{tmp}/x.bin"], ".safetensors"),
    (["export", "{set}/run/weights.safetensors", "{set}/run/weights.safetensors"], "WEIGHTS itself"),
    (["copy-cache", "{set}/dense.zarr", "{set}/train"], "Nothing was changed"),
    (["copy-cache", "{set}/dense.zarr", "{set}/dense.zarr"], "another place"),
    (["plan-cache", *SHARDS, *TEACHER, "--views", "2", "--teacher", "regnty_160"], "'regnety_160'"),
    (["plan-cache", *CACHE[1:3], *TEACHER, "--views", "2", "--seconds", "-1"], "--seconds"),
    (["plan-cache", *CACHE[1:3], *TEACHER, "--views", "2", "--seconds", "nan"], "--seconds"),
    (["cost", "--tflops", "nan"], "--tflops"),
    (["cost", "--cache", "{set}/dense.zarr", "--views", "3"], "--cache says it"),
    (["cost", "--model", "deit_tinny"], "the nearest is 'deit_tiny"),
    (["cache-status", "{set}/dense.zarr", "--max-units", "3"], "--fidelity"),
    (["verify-cache", "{set}/dense.zarr", "--tolerance", "0.1"], "--teacher"),
    (["verify-cache", "{set}/dense.zarr", "--blocks", "3"], "--deep"),
    (["verify-cache", "{set}/dense.zarr", "--shard-cache-limit", "3"], "--shard-cache-limit: would be ignored"),
    (["cost", "--shard-cache-limit", "3"], "--shard-cache-limit: would be ignored"),
    (["verify-cache", ""], "CACHE"),
    (["models", "deit_tinny"], "the nearest is 'deit_tiny"),
    (["make-shards", "{set}", "{tmp}/shards", "--seed", "-1"], "--seed"),
    (["evaluate", *SHARDS, "--weights", "{set}/teacher.safetensors"], "give --model NAME"),
    (["predict", "{picture}", "--weights", "{set}/teacher.safetensors"], "give --model NAME"),
    (["export", "{set}/teacher.safetensors", "{tmp}/x.safetensors"], "give --model NAME"),
    ([*CACHE, "--teacher", "nomodule:x"], "module nomodule cannot be imported"),
    ([*CACHE, "--teacher", "os:pathlike"], "os has no function 'pathlike'; similar: PathLike"),
    ([*CACHE, "--teacher", ":x"], "expected package.module:function"),
    ([*REMOTE, "--lambda", "2"], "--lambda"),
    ([*REMOTE, "--set", "learning_rate=0.1"], "the nearest is 'lr'"),
    ([*REMOTE, "--set", "lr=nan"], "lr"),
    ([*REMOTE, "--distill", "hard", "--tau", "2"], "--tau: would be ignored"),
    ([*REMOTE, "--model", "deit_tinny"], "the nearest is 'deit_tiny"),
    ([*REMOTE, "--recipe", "deit_finetune384", "--set", "image_size=32"], "init_weights"),
]
"""Command lines and a word of the refusal."""

WEIGHTS = ["--weights", "{set}/run/weights.safetensors"]
NO_FILE = "no such file"
NET = ["--model", "resnet18", "--out", "{tmp}/new"]
ONLINE = ["--online", "--teacher", "resnet18", "--out", "{tmp}/new"]
MISSING: list[tuple[list[str], str]] = [
    (["verify-cache", "{tmp}/nope"], "no cache here"),
    (["cache-status", "{tmp}/nope"], "no cache here"),
    (["copy-cache", "{tmp}/nope", "{tmp}/copy"], "no cache here"),
    (["check-machine", "--cache", "{tmp}/nope"], "no cache here"),
    (["cost", "--cache", "{tmp}/nope"], "no cache here"),
    (["show-views", *SHARDS, "--cache", "{tmp}/nope", "--out", "{tmp}/x.png"], "no cache here"),
    ([*TRAIN, "--cache", "{tmp}/nope"], "no cache here"),
    ([*TRAIN, "--cache", "{set}/dense.zar"], "v0.1.0/dense.zarr?"),
    (["verify-cache", "{set}/desne.zarr"], "v0.1.0/dense.zarr?"),
    (["cache-status", "{set}"], "it holds dense.zarr"),
    (["report", "{set}/rum"], "v0.1.0/run?"),
    (["report", "{set}"], "it holds "),
    (["evaluate", *SHARDS, "--weights", "{set}"], "it holds "),
    (["evaluate", *SHARDS, "--weights", "{set}/interrupted/weights.safetensors"], "is a run that is not finished"),
    (["evaluate", *SHARDS, "--weights", "{set}/rum"], "v0.1.0/run?"),
    (["export", "{set}/run/weight.safetensors", "{tmp}/x"], "run/weights.safetensors?"),
    (["predict", "{tmp}/nope.jpg", *WEIGHTS], "nope.jpg: no such file"),
    (["predict", "{tmp}/nope.jpg", "{tmp}/no.png", *WEIGHTS], "nor is any of 2"),
    (["predict", "{set}/run/weights.safetensors", "--weights", "{tmp}/nope"], "no such file"),
    (["evaluate", *SHARDS, "--weights", "{tmp}/nope"], "no such file"),
    (["export", "{tmp}/nope", "{tmp}/x.safetensors"], "no such file"),
    ([*CACHE, "--teacher-weights", "{tmp}/nope"], "no such file"),
    (["report", "{tmp}/nope"], "nope: no such folder"),
    (["report", "{set}/run", "{set}/train"], "neither a run"),
    (["report", "{set}/run", "--teacher", "{tmp}/nope"], "no run here"),
    (["verify-cache", "{set}/dense.zarr", "--deep", "--shards", "{set}/val"], "other shards"),
    ([*CACHE, "--teacher-weights", "{cut}"], "cannot be read as safetensors: expected"),
    (["evaluate", *SHARDS, "--weights", "{cut}"], "cannot be read as safetensors: expected"),
    (["export", "{cut}", "{tmp}/x.safetensors"], "cannot be read as safetensors: expected"),
    *(
        ([*CACHE, "--teacher-weights", f"{{damaged}}/{name}"], said)
        for name, said in (
            ("member.pth", "cannot be read as a torch file: Bad magic number for file header"),
            ("zip.pth", "cannot be read as a torch file: expected one member data.pkl, got 0"),
            ("text.pth", "cannot be read: expected a .safetensors or torch file, got one that begins with b'<html>"),
            ("empty.pth", "cannot be read: expected a .safetensors or torch file, got an empty one"),
            ("cut.bin", "cannot be read as safetensors: expected"),
        )
    ),
    *(
        ([word.replace("WEIGHTS", "{damaged}/cut.pth") for word in words], "cannot be read as a torch file: File is")
        for words in (
            [*CACHE, "--teacher-weights", "WEIGHTS"],
            [*CACHE, "--teacher", "local-dir:{damaged}/folder"],
            ["evaluate", *SHARDS, "--weights", "WEIGHTS"],
            ["predict", "{picture}", "--weights", "WEIGHTS"],
            ["export", "WEIGHTS", "{tmp}/x.safetensors"],
            [*TRAIN, "--pretrained", "WEIGHTS"],
            [*TRAIN, "--set", "finetune=true", "--set", "init_weights=WEIGHTS"],
            ["train-teacher", *SHARDS, "--out", "{tmp}/t", "--model", "resnet18", "--init-weights", "WEIGHTS"],
        )
    ),
    (["predict", "{set}/classes.txt", *WEIGHTS], "classes.txt"),
    (["predict", "{set}/classes.txt", "{tmp}/no.png", *WEIGHTS], "2 of 2 files could not be answered"),
    (["distill", "{tmp}/nope", "--out", "{tmp}/new"], "nope"),
    (["distill", "{set}/train", "--out", "{tmp}/new", "--labels", "{tmp}/nope"], NO_FILE),
    (["make-shards", "{tmp}/nope", "{tmp}/new"], "nope"),
    (["make-shards", "{set}/train", "{tmp}/new", "--labels", "{tmp}/nope"], NO_FILE),
    (["make-shards", "{set}/train", "{tmp}/new", "--class-names", "{tmp}/nope"], NO_FILE),
    (["check-shards", "{tmp}/nope"], NO_FILE),
    (["check-shards", "{set}/train", "--class-names", "{tmp}/nope"], NO_FILE),
    (["train-teacher", "--shards", "{tmp}/nope", *NET], NO_FILE),
    (["train-teacher", *SHARDS, "--val-shards", "{tmp}/nope", *NET], NO_FILE),
    (["train-teacher", *SHARDS, "--init-weights", "{tmp}/nope", *NET], NO_FILE),
    (["train-teacher", *SHARDS, "--config", "{tmp}/nope", *NET], NO_FILE),
    ([*CACHE, "--shards", "{tmp}/nope"], NO_FILE),
    ([*CACHE, "--teacher-classes", "{tmp}/nope"], NO_FILE),
    ([*TRAIN, "--shards", "{tmp}/nope"], NO_FILE),
    ([*TRAIN, "--val-shards", "{tmp}/nope"], NO_FILE),
    (["train-student", *TRAIN[1:5], "--pretrained", "{tmp}/nope.pth", "--out", "{tmp}/new"], NO_FILE),
    ([*TRAIN, "--config", "{tmp}/nope"], NO_FILE),
    ([*TRAIN, "--set", "finetune=true", "--set", "init_weights={tmp}/nope"], NO_FILE),
    (["train-student", *SHARDS, *ONLINE, "--teacher-classes", "{tmp}/nope"], NO_FILE),
    (["evaluate", "--shards", "{tmp}/nope", *WEIGHTS], NO_FILE),
    (["show-views", "--shards", "{tmp}/nope", "--out", "{tmp}/x.png"], NO_FILE),
    (["plan-cache", "--shards", "{tmp}/nope", "--views", "2"], NO_FILE),
    (["plan-cache", *SHARDS, "--views", "2", "--teacher-weights", "{tmp}/nope"], NO_FILE),
    (["plan-cache", *SHARDS, "--views", "2", "--teacher-classes", "{tmp}/nope"], NO_FILE),
    (["cost", "--shards", "{tmp}/nope"], NO_FILE),
    ([*ABLATE, "--shards", "{tmp}/nope"], NO_FILE),
    ([*ABLATE, "--val-shards", "{tmp}/nope"], NO_FILE),
    (
        ["ablate", *TRAIN[1:3], "--val-shards", "{set}/val", "--cache", "{tmp}/nope", "--out", "{tmp}/s"],
        "no cache here",
    ),
    ([*ABLATE, "--config", "{tmp}/nope"], NO_FILE),
    (["verify-cache", "{set}/dense.zarr", "--deep", "--shards", "{tmp}/nope"], NO_FILE),
]
"""Command lines that name an artefact which does not exist, and a word of the refusal; their exit code is 1."""
_MADE = {
    "--out",
    "dest",
    "destination",
    "--skip-bad",
    "--shard-cache",
    "--scratch",
    "--html",
    "--png",
    "--csv",
    "--onnx",
}
_ELSEWHERE = {
    ("train-student", "--teacher-weights"),
    ("export", "--images"),
    ("ablate", "--pretrained"),
    ("cache-teacher", "--cache"),
    ("verify-cache", "--teacher-weights"),
    ("verify-cache", "--teacher-classes"),
    ("copy-cache", "--shards"),
}
"""Paths that are read after torch is imported, or are those of another command."""


def test_every_path_that_is_read_has_a_case_of_a_missing_one() -> None:
    """A missing path ended some commands with 1 and others with 2."""
    paths = set()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for param in command.params:
            word = param.opts[0]
            is_path = isinstance(param.type, LocalPath | CacheParam) or word in ("--shards", "--val-shards")
            if is_path and word not in _MADE:
                paths.add((name, word if word.startswith("-") else ""))
    tried = {(words[0], words[at - 1]) for words, _ in MISSING for at, word in enumerate(words) if "nope" in word}
    tried = {(name, flag if flag.startswith("-") else "") for name, flag in tried}
    assert paths - tried - _ELSEWHERE == set()


CHILD = """
import json, os, sys
from click.testing import CliRunner
from cli import cli
for words in json.load(sys.stdin):
    if os.fork() == 0:
        result = CliRunner().invoke(cli, words)
        heavy = sorted({"torch", "timm", "zarr", "cv2", "matplotlib"} & set(sys.modules))
        os.write(1, json.dumps([result.exit_code, result.output, heavy]).encode() + b"\\n")
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, output and heavy modules imported by then, of every case in turn."""
    tmp, made = tmp_path_factory.mktemp("refused"), tmp_path_factory.mktemp("made")
    (made / "cut.safetensors").write_bytes((SET / "teacher.safetensors").read_bytes()[:-100])
    _damage(made)
    Image.new("RGB", (9, 9)).save(made / "picture.png")
    places = {"damaged": made, "set": SET, "tmp": tmp, "cut": made / "cut.safetensors", "picture": made / "picture.png"}
    cases = [[word.format(**places) for word in words] for words, _ in (*REFUSED, *MISSING)]
    done = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(zip(map(_id, (*REFUSED, *MISSING)), map(json.loads, done.stdout.splitlines()), strict=True))
    return found | {"made": (0, " ".join(path.name for path in tmp.iterdir()), [])}


def _damage(folder: Path) -> None:
    """Torch files that are none any more, and what is no such file under that name."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        file.writestr("archive/data/0", bytes(400))
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("picture.png", b"")
    (folder / "cut.pth").write_bytes(whole.getvalue()[:-100])
    (folder / "member.pth").write_bytes(whole.getvalue().replace(b"PK\x03\x04", b"PK\x00\x00", 1))
    (folder / "zip.pth").write_bytes(other.getvalue())
    (folder / "text.pth").write_text("<html>please log in</html>")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "folder/config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    (folder / "folder/pytorch_model.bin").write_bytes(whole.getvalue()[:-100])
    (folder / "cut.bin").write_bytes((SET / "teacher.safetensors").read_bytes()[:-100])


@pytest.mark.slow
def test_a_refusal_makes_nothing(said: dict[str, tuple[int, str, list[str]]]) -> None:
    assert said["made"][1] == ""


def _id(case: tuple[list[str], str]) -> str:
    words, message = case
    return f"{words[0]} {' '.join(words[-2:])}".replace("{set}", "SET").replace("{tmp}", "TMP") + f": {message}"


@pytest.mark.parametrize("case", [*REFUSED, *MISSING], ids=_id)
@pytest.mark.slow
def test_a_slip_is_refused_before_torch_is_imported(
    case: tuple[list[str], str], said: dict[str, tuple[int, str, list[str]]]
) -> None:
    code, output, heavy = said[_id(case)]
    assert code == (1 if case in MISSING else 2), output
    assert case[1] in output
    assert not heavy, output
    assert "Traceback" not in output and "defect" not in output
    message = output[output.lower().index("error:") :]
    assert len(message) <= 600 and len(message.splitlines()) <= 6, message


ELSEWHERE = [
    ([*CACHE, "--shards", "{set}/val"], "made from other shards"),
    ([*CACHE, "--teacher", "resnet18"], "teacher.name"),
    ([*CACHE, "--record", "hard"], "record"),
]
"""Command lines beside a cache on a server, which its header alone refuses."""


def test_the_header_of_a_cache_on_a_server_refuses_before_torch_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    with MoodyServer(SET, "good", always=True, late=False) as server:
        environ = os.environ | s3_variables(f"http://127.0.0.1:{server.port}/")
        for words, said in ELSEWHERE:
            case = [word.format(set=SET, tmp=tmp_path) for word in [*words, "--cache", "s3://bucket/dense.zarr"]]
            done = subprocess.run(
                [sys.executable, "-c", CHILD], input=json.dumps([case]), capture_output=True, text=True, env=environ
            )
            code, output, heavy = json.loads(done.stdout)
            assert code in (1, 2) and said in output, output
            assert not {"torch", "timm"} & set(heavy), heavy
