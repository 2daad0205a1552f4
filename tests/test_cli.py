"""The commands as a user types them: the whole job on a few digits, and one clean line for every mistake."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cli import COMMANDS
from demo.mnist import write_digits
from tests.command_line import done, run

TEACHER = ["--distill", "none", "--model", "test_resnet", "--epochs", "1", "--batch-size", "16"]
SMALL = ["--set", "repeats=1", "--set", "warmup_epochs=0", "--set", "ema_decay=0", "--workers", "0", "--log-every", "2"]
VIT = [f"--set=model_args.{arg}" for arg in ("patch_size=16", "embed_dim=32", "depth=1", "num_heads=2")]
VIEWS = ["--recipe", "plain", "--size", "32", "--set", "mixup_alpha=0.8", "--set", "block_size=8"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a teacher and its cache, made by the commands."""
    work = tmp_path_factory.mktemp("work")
    write_digits(work / "digits", seed=0, limit=80)
    classes = work / "classes.txt"
    classes.write_text("\n".join("0123456789"))
    for split in ("train", "val"):
        done(
            "make-shards", work / "digits" / split, work / split, "--samples-per-shard", "32", "--class-names", classes
        )
        done("check-shards", work / split, "--decode")
    done(
        "train-student", "--shards", work / "train", *TEACHER, *SMALL, "--set", "image_size=32",
        "--set", "view.name=plain", "--set", "view.block_size=8", "--out", work / "teacher",
    )  # fmt: skip
    done(*cache_command(work))
    return work


def cache_command(work: Path, views: str = "4", weights_name: str = "weights.safetensors") -> list[str | Path]:
    weights = work / "teacher" / weights_name
    return ["cache-teacher", "--shards", work / "train", "--cache", work / "c.zarr", "--teacher", "test_resnet",
            "--teacher-weights", weights, "--views", views, *VIEWS, "--views-per-unit", "2", "--batch-size", "16",
            "--workers", "0"]  # fmt: skip


def student_command(work: Path, out: str, *more: str) -> list[str | Path]:
    return ["train-student", "--shards", work / "train", "--val-shards", work / "val", "--cache", work / "c.zarr",
            "--model", "deit_tiny_distilled_patch16_224", "--epochs", "2", "--batch-size", "16", *SMALL, *VIT,
            "--out", work / out, *more]  # fmt: skip


@pytest.mark.slow
def test_the_main_job_from_folders_to_a_student_and_a_second_run_does_nothing(work: Path) -> None:
    assert "0 teacher forwards, 0 views" in done(*cache_command(work)), "a finished cache costs nothing"
    done(*student_command(work, "soft", "--distill", "soft", "--lambda", ".9", "--tau", "2"))
    summary = json.loads((work / "soft" / "summary.json").read_text())
    assert summary["pixels_checked"] == summary["images"] > 0
    assert (summary["pixels_mismatched"], summary["teacher_forwards_in_training"]) == (0, 0)
    before = (work / "soft" / "weights.safetensors").read_bytes()
    done(*student_command(work, "soft", "--distill", "soft", "--lambda", ".9", "--tau", "2"))
    assert (work / "soft" / "weights.safetensors").read_bytes() == before
    weights = work / "soft" / "weights.safetensors"
    found = json.loads(done("evaluate", "--shards", work / "val", "--weights", weights, "--workers", "0", "--json")
                       .splitlines()[-1])  # fmt: skip
    assert found["average"]["top1"] == pytest.approx(summary["top1"]), "evaluation is the same wherever it is asked"
    image = next((work / "digits" / "val").glob("*/*.png"))
    assert len(done("predict", image, "--weights", weights, "--top", "3").splitlines()) == 4
    done("export", weights, work / "exported" / "tiny.safetensors")


@pytest.mark.slow
def test_online_sees_what_the_cache_saw(work: Path) -> None:
    """Hard labels of a cache and of the teacher in the loop: the same run, to the printed digit."""
    hard = ("--distill", "hard", "--lambda", ".5")
    done(*student_command(work, "cached", *hard))
    words = student_command(work, "online", *hard)
    at = words.index("--cache")
    words[at : at + 2] = ["--online", "--teacher", "test_resnet", "--teacher-weights",
                          work / "teacher" / "weights.safetensors", "--set", "image_size=32",
                          "--set", "view.name=plain", "--set", "view.mixup_alpha=0.8", "--set", "view.block_size=8",
                          "--set", "view.block_views=2"]  # fmt: skip
    done(*words)
    cached, online = (json.loads((work / name / "summary.json").read_text()) for name in ("cached", "online"))
    assert online["teacher_forwards_in_training"] > 0
    assert online["top1"] == cached["top1"] and online["loss"] == pytest.approx(cached["loss"], abs=1e-5)


def test_looking_growing_and_verifying(work: Path, tmp_path: Path) -> None:
    status = json.loads(done("cache-status", work / "c.zarr", "--fidelity", "--json").splitlines()[-1])
    assert status["whole_views"] >= 4 and status["fidelity"][0]["kl"] >= 0
    done(*cache_command(work, views="6", weights_name=""))  # the folder of the run
    assert "views that every sample has: 6" in done("cache-status", work / "c.zarr", "--png", tmp_path / "c.png")
    assert "no problems" in done("verify-cache", work / "c.zarr", "--deep", "--shards", work / "train", "--blocks", "4")
    again = ("--teacher", "test_resnet", "--teacher-weights", work / "teacher" / "weights.safetensors", "--blocks", "4")
    found = done("verify-cache", work / "c.zarr", "--shards", work / "train", *again)
    assert "teacher: 4 checked" in found and "no problems" in found.splitlines()[-1]
    image = next((work / "digits" / "train").glob("*/*.png"))
    key = f"{image.parent.name}/{image.stem}"
    done(
        "show-views",
        "--shards",
        work / "train",
        "--cache",
        work / "c.zarr",
        "--sample",
        key,
        "--out",
        tmp_path / "s.png",
    )
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_a_cache_made_with_default_flags_is_trained_on_with_default_flags(work: Path, tmp_path: Path) -> None:
    """Ten views and a few hundred images fit neither three repeats nor a batch of 1,024: both are chosen, and said."""
    teacher = ("--teacher", "test_resnet", "--teacher-weights", work / "teacher" / "weights.safetensors")
    where = ("--shards", work / "train", "--cache", tmp_path / "ten.zarr")
    done("cache-teacher", *where, *teacher, "--views", "10", "--recipe", "plain", "--size", "32", "--workers", "0")
    student = ("--model", "deit_tiny_patch16_224", "--epochs", "1", "--workers", "0", "--out", tmp_path / "run")
    small = [f"--set=model_args.{arg}" for arg in ("patch_size=16", "embed_dim=16", "depth=1", "num_heads=2")]
    said = run("train-student", *where, *student, *small)
    assert said.exit_code == 0, said.output
    assert "repeats 2 instead of 3" in said.output and "batch 16 instead of 1024" in said.output
    again = run("train-student", *where, *student, *small)
    assert again.exit_code == 0 and "instead of" not in again.output, "a run that is there keeps what was chosen"


@pytest.mark.slow
def test_a_map_and_its_report(work: Path) -> None:
    words = ["ablate", *student_command(work, "sweep")[1:], "--lambda", "0,.5", "--tau", "2", "--together", "5"]
    words += ["--distill", "hard,soft,dist,soft-std"]
    assert "5 of 5 cells done" in done(*words)
    assert "training" not in done(*words), "a finished sweep trains nothing"
    done("report", work / "sweep", "--html", work / "r.html", "--csv", work / "r.csv")
    page = (work / "r.html").read_text()
    assert "dist τ 2" in page and "soft-std τ 2" in page
    assert "<html" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert len((work / "r.csv").read_text().splitlines()) == 6


def test_what_is_begun_goes_on_in_its_own_precision_where_the_default_is_another(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on a GPU, gone on with on a CPU: a longer cache, a resumed run, a larger sweep."""
    shards = ["--shards", work / "train", "--workers", "0"]
    grow = ["cache-teacher", *shards, "--cache", tmp_path / "c.zarr", "--teacher", "test_resnet", *VIEWS]
    grow += [
        "--teacher-weights",
        work / "teacher" / "weights.safetensors",
        "--views-per-unit",
        "2",
        "--record",
        "dense",
    ]
    recipe = ["--model", "deit_tiny_distilled_patch16_224", "--batch-size", "16", *SMALL, *VIT, "--epochs", "1"]
    train = ["train-student", *shards, "--cache", tmp_path / "c.zarr", *recipe, "--out", tmp_path / "run"]
    sweep = ["ablate", *shards, "--val-shards", work / "val", "--cache", tmp_path / "c.zarr", *recipe]
    sweep += ["--tau", "2", "--distill", "soft", "--out", tmp_path / "sweep"]
    with monkeypatch.context() as patch:
        patch.setattr("teacher_cache.network.arithmetic.default_precision", lambda *_: ("bf16", "a pretended GPU"))
        for words in ([*grow, "--views", "2"], train, [*sweep, "--lambda", "0.5"]):
            assert "precision bf16: a pretended GPU" in done(*words)
    assert "already finished" in done(*train), "no other run"
    for words in ([*sweep, "--lambda", "0.5,0.9"], [*grow, "--views", "4"]):
        assert "precision bf16: as begun" in done(*words)
        refused = run(*words, "--precision", "fp32")
        assert refused.exit_code == 1 and "precision" in refused.output and "bf16" in refused.output


MISTAKES = [
    (["cache-teacher", "--shards", "nowhere", "--cache", "c", "--views", "2"], 1, "nowhere"),
    (
        ["train-student", "--shards", "{work}/train", "--out", "{tmp}", "--distill", "hard", "--workers", "0"],
        2,
        "--cache",
    ),
    (["train-student", "--shards", "{work}/train", "--out", "{tmp}", "--set", "epoch=3"], 2, "nearest is 'epochs'"),
    (["train-student", "--shards", "{work}/train", "--out", "{tmp}", "--recipe", "diet"], 2, "nearest is 'deit'"),
    (["train-student", "--shards", "{work}/train", "--out", "{tmp}", "--lambda", "2"], 2, "--lambda"),
    (
        ["train-student", "--shards", "{work}/train", "--out", "{tmp}", "--cache", "{work}/none.zarr"],
        1,
        "no cache here",
    ),
    (["train-student", "--shards", "{work}/val", "--out", "{tmp}", "--cache", "{work}/c.zarr"], 1, "other shards"),
    (
        ["cache-teacher", "--shards", "{work}/train", "--cache", "{tmp}/c", "--views", "2", "--teacher", "regnty"],
        2,
        "regnet",
    ),
    (
        ["cache-teacher", "--shards", "{work}/train", "--cache", "{tmp}/c", "--views", "2", "--set", "flp=1"],
        2,
        "'flip'",
    ),
    (
        ["cache-teacher", "--shards", "{work}/train", "--cache", "{tmp}/c", "--views", "2"],
        2,
        "answers in 1,000 classes",
    ),
    (["plan-cache", "--shards", "{work}/train", "--views", "2"], 2, "the shards have 10"),
    (["cache-teacher", "--shards", "{work}/train", "--cache", "{tmp}/c", "--views", "twelve"], 2, "not a whole number"),
    (
        ["train-teacher", "--shards", "{work}/train", "--pretrained", "resnet50", "--out", "{tmp}/t"],
        2,
        "such as resnet50.a1_in1k (timm's default) or resnet50.fb_ssl_yfcc100m_ft_in1k",
    ),
    (["train-studnet"], 2, "No such command 'train-studnet'. Did you mean train-student"),
    (["zzz"], 2, "No such command 'zzz'.\n"),
    (["show-views", "{work}/train", "--out", "x.png"], 2, "Missing option '--shards'. Type --shards {work}/train"),
    (["cache-status", "{tmp}"], 1, "no cache here"),
    (["verify-cache", "{work}/c.zarr", "--teacher", "test_resnet"], 2, "which needs --shards"),
    (["verify-cache", "{work}/c.zarr", "--teacher-weights", "w.pth"], 2, "give --teacher NAME"),
    (["evaluate", "--shards", "{work}/val", "--weights", "{tmp}/w.safetensors"], 1, "no such file"),
    (["models", "deit_tny"], 2, "nearest is 'deit_tiny"),
    (["report", "{tmp}"], 1, "neither a run"),
    (
        ["ablate", "--shards", "a", "--val-shards", "b", "--cache", "c", "--lambda", "x", "--out", "{tmp}"],
        2,
        "--lambda",
    ),
    (["make-shards", "{tmp}/nothing", "{tmp}/out"], 1, "expected a folder"),
    (
        ["show-views", "--shards", "{work}/train", "--sample", "zebra", "--out", "{tmp}/s.png"],
        1,
        "no sample has the key",
    ),
]


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES, ids=[f"{m[0][0]}-{n}" for n, m in enumerate(MISTAKES)])
def test_a_mistake_is_one_clean_message(words: list[str], code: int, message: str, work: Path, tmp_path: Path) -> None:
    result = run(*(word.format(work=work, tmp=tmp_path) for word in words))
    assert result.exit_code == code, result.output
    assert message.format(work=work) in result.output
    assert "Traceback" not in result.output and "defect" not in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert len(done(command, "--help").splitlines()) > 5


def test_predict_takes_folders_and_goes_on_after_a_bad_file(work: Path, tmp_path: Path) -> None:
    done(*student_command(work, "pupil", "--distill", "hard", "--lambda", ".5"))
    folder = tmp_path / "new" / "deep"
    folder.mkdir(parents=True)
    for n, image in enumerate(sorted((work / "digits" / "val").glob("*/*.png"))[:3]):
        (folder / f"{n}.PNG").write_bytes(image.read_bytes())
    (tmp_path / "new" / "broken.jpg").write_bytes(b"no image")
    weights = ["--weights", work / "pupil" / "weights.safetensors", "--top", "2"]
    result = run("predict", tmp_path / "new", *weights)
    assert result.exit_code == 1 and "1 of 4 files could not be answered" in result.output
    assert result.output.count(" %  ") == 6, "the others are answered"
    lines = [json.loads(line) for line in run("predict", tmp_path / "new", *weights, "--json").stdout.splitlines()]
    assert [len(line.get("classes", ())) for line in lines] == [0, 2, 2, 2] and "broken.jpg" in lines[0]["problem"]
    (folder / ".ipynb_checkpoints").mkdir()
    for name in ("3.jfif", "4.bmp", "5.heic", ".hidden.png", ".ipynb_checkpoints/0.png"):
        (folder / name).write_bytes((folder / "0.PNG").read_bytes())
    result = run("predict", folder, *weights)
    assert result.exit_code == 0 and result.output.count(" %  ") == 8
    assert "4 files answered; passed over: 4 files: 2 × hidden, 1 × .bmp, 1 × .heic" in result.output
    (folder / "Thumbs.db").touch()
    assert "1 × file of a file manager" in run("predict", folder, *weights).output, "called as make-shards calls it"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.gif").touch()
    result = run("predict", tmp_path / "empty", *weights)
    assert result.exit_code == 1 and "expected images" in result.output and "a.gif" in result.output


def test_show_views_shows_some_samples_where_none_is_named(work: Path, tmp_path: Path) -> None:
    done("show-views", "--shards", work / "train", "--cache", work / "c.zarr", "--out", tmp_path / "some.png")
    with Image.open(tmp_path / "some.png") as sheet:
        some = sheet.size
    key = next(path for path in (work / "digits" / "train").glob("*/*.png"))
    one = ["--sample", f"{key.parent.name}/{key.stem}", "--out", tmp_path / "one.png"]
    done("show-views", "--shards", work / "train", "--cache", work / "c.zarr", *one)
    with Image.open(tmp_path / "one.png") as sheet:
        assert some[1] > 3 * sheet.size[1], "four sheets, one below the other"


def test_no_command_writes_into_a_folder_of_photos(work: Path) -> None:
    """Nor into one of its own source; what is there stays as it is."""
    photos = work / "digits" / "train"
    before = sorted(photos.rglob("*"))
    for words in (
        ["make-shards", photos, photos],
        ["make-shards", photos, photos / "0" / "shards"],
        ["make-shards", work / "digits" / "val", photos],
        [*cache_command(work)[:3], "--cache", photos, *cache_command(work)[5:]],
        [*student_command(work, "x")[:-1], photos],
    ):
        result = run(*words)
        assert result.exit_code == 2 and ("expected a" in result.output), result.output
    assert sorted(photos.rglob("*")) == before


def test_make_shards_refuses_shards_that_it_did_not_make(work: Path, tmp_path: Path) -> None:
    """Shards without its journal may be anybody's: their names would be the same."""
    shutil.copytree(work / "val", tmp_path / "val")
    (tmp_path / "val" / ".make-shards.jsonl").unlink()
    before = (tmp_path / "val" / "shard-000000.tar").read_bytes()
    result = run("make-shards", work / "digits" / "val", tmp_path / "val")
    assert result.exit_code == 2 and "Nothing was changed" in result.output
    assert (tmp_path / "val" / "shard-000000.tar").read_bytes() == before
