"""The study end to end on generated photos: every kind of cache and sweep once, its tables, and a second run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from benchmarks.study.commands import STOPPED, TIMES, Commands
from benchmarks.study.derived import derive
from benchmarks.study.results import ArmResult, deviation, paired
from benchmarks.study.settings import Settings, read_settings
from benchmarks.study.stages import Stages
from benchmarks.study.tables import study_tables
from cli import cli
from shards.index.shard_index import open_index
from shards.locks import locked
from student.run.run_reader import Run, read_run
from teacher_cache.network.weights_metadata import trained_as
from teacher_cache.store.cache import TeacherCache
from tests.stage1_tiny import TINY

STUDY = Path(__file__).parent.parent / "benchmarks" / "study"
CLASSES = 3
SETTINGS = """
[shards]
samples_per_shard = 18
photos_per_class = 12
classes = "folders"
[teacher]
name = "{teacher}"
weights = "{weights}"
batch_size = 16
[teachers.other]
name = "{teacher}"
weights = "{weights}"
[views]
recipe = "plain"
size = 32
fields = {{ crop = "rrc", flip = 0.5 }}
[student]
epochs = 2
batch_size = 16
repeats = 1
warmup_epochs = 0
lr_scaling = "none"
ema_decay = 0.0
drop_path = 0.0
model_args = {{ patch_size = 16, embed_dim = 16, depth = 1, num_heads = 1 }}
[caches]
lossless = {{ record = "dense", views = 2 }}
small = {{ source = "lossless", record = "dense8" }}
second = {{ record = "dense8", views = 2, teacher = "other" }}
crop = {{ record = "dense", views = 1, view = {{ recipe = "eval" }} }}
centre = {{ source = "lossless", record = "dense", answers = "crop" }}
next = {{ source = "lossless", record = "dense", answers = "next" }}
[[sweeps]]
name = "teaching"
cache = "lossless"
distill = ["soft"]
weights = [0, 0.5]
temperatures = [2]
seeds = 2
together = 2
[[sweeps]]
name = "online"
cache = "lossless"
distill = ["soft"]
weights = [0.5]
temperatures = [2]
seeds = 1
online = true
[[sweeps]]
name = "small"
cache = "small"
distill = ["soft"]
weights = [0.5]
temperatures = [2]
views_used = [1]
seeds = 1
epochs = 1
[[sweeps]]
name = "centre"
cache = "centre"
distill = ["hard"]
weights = [0.5]
temperatures = []
seeds = 1
[[sweeps]]
name = "both"
cache = "lossless+second"
distill = ["soft"]
weights = [0.5]
temperatures = [2]
seeds = 1
[[questions]]
name = "teaching"
title = "Does it help?"
arms = [
  {{ label = "none", at = "teaching/none" }},
  {{ label = "soft", at = "teaching/soft-l0.5-t2" }},
  {{ label = "both", at = "both/soft-l0.5-t2" }},
]
[[questions]]
name = "online"
title = "Is it the same?"
curves = true
arms = [{{ label = "online", at = "online/soft-l0.5-t2" }}, {{ label = "cached", at = "teaching/soft-l0.5-t2" }}]
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a teacher's weights and the settings in one folder."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(3)
    for split, count in (("train", 13), ("val", 4)):
        for label in range(CLASSES):
            (folder / "photos" / split / f"class{label}").mkdir(parents=True)
            for n in range(count):
                image = cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), (48, 40), interpolation=cv2.INTER_CUBIC)
                assert cv2.imwrite(str(folder / "photos" / split / f"class{label}" / f"{n}.png"), image)
    torch.manual_seed(0)
    save_file(timm.create_model(TINY, num_classes=CLASSES).state_dict(), folder / "teacher.safetensors")
    text = SETTINGS.format(teacher=TINY, weights=folder / "teacher.safetensors")
    (folder / "study.toml").write_text(text)
    return folder


class _InProcess:
    """Runs the commands here: an interpreter for each would cost more than the study."""

    def run(self, stage: str, *arguments: str | Path) -> None:
        """Run one; its error is the test's."""
        result = CliRunner().invoke(cli, [str(word) for word in arguments])
        assert result.exit_code == 0, f"{stage}: {result.output}"

    def require_time(self) -> None:
        """There is time."""


def _run(work: Path) -> Settings:
    settings = read_settings(work / "study.toml")
    Stages(settings, work / "photos", work / "out", _InProcess()).run()
    return settings


@pytest.mark.slow
def test_a_study_runs_to_its_tables_and_again_for_nothing(work: Path, tmp_path: Path) -> None:
    settings = _run(work)
    text = "\n".join(study_tables(settings, work / "out", tmp_path))
    assert re.search(r"\| soft \| 2 of 2 \| \d", text)
    assert "not run yet" not in text
    none, soft = (re.search(rf"^\| {arm} \| 2 of 2 \| (\S+)", text, re.M) for arm in ("none", "soft"))
    assert none and soft
    for arm, final in (("none", none), ("soft", soft)):
        by_epoch = re.search(rf"^\| {arm} \| (\d[^a-z]*) \|$", text, re.M)
        assert by_epoch and by_epoch.group(1).split(" | ")[-1] == f"{float(final.group(1)):.1f}"
    equal = re.search(r"cached, seed 0: (\d+) of (\d+) logged losses equal", text)
    assert equal is not None
    assert equal.group(1) == equal.group(2) == "2", "cached = online, to the bit (law 9)"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "study-online-loss.png",
        "study-online-top1.png",
        "study-online.png",
        "study-teaching.png",
    ]
    summaries = {path: path.stat().st_mtime_ns for path in (work / "out" / "sweeps").glob("*/cells/*/summary.json")}
    assert len(summaries) == 8
    assert len(read_run(work / "out/sweeps/small/cells/soft-l0.5-t2-v1-s0").epochs) == 1
    assert open_index(str(work / "out/shards/train")).num_samples == 12 * CLASSES
    _run(work)
    assert all(path.stat().st_mtime_ns == when for path, when in summaries.items()), "finished students stay"


@pytest.mark.slow
def test_a_second_process_leaves_the_online_student_to_the_first(work: Path) -> None:
    class Listed:
        def __init__(self) -> None:
            self.commands: list[str] = []

        def run(self, stage: str, *arguments: str | Path) -> None:
            self.commands.append(str(arguments[0]))

        def require_time(self) -> None:
            """There is time."""

    settings, alone, second = _run(work), Listed(), Listed()
    Stages(settings, work / "photos", work / "out", alone).run()
    with locked(work / "out/sweeps/online/cells/soft-l0.5-t2-s0.lock") as held:
        assert held
        Stages(settings, work / "photos", work / "out", second).run()
    assert alone.commands.count("train-student") == 1
    assert second.commands == [command for command in alone.commands if command != "train-student"]


@pytest.mark.slow
def test_derived_caches_keep_the_digests_and_say_whose_answers_they_hold(work: Path) -> None:
    _run(work)
    caches = work / "out" / "caches"
    with TeacherCache.open(caches / "lossless") as source, TeacherCache.open(caches / "crop") as crop:
        derive(work / "next.zarr", open_index(str(work / "out/shards/train")), source, "next")
        with TeacherCache.open(caches / "centre") as centre, TeacherCache.open(work / "next.zarr") as following:
            assert "centre crop" in centre.spec.teacher.name
            assert "next view" in following.spec.teacher.name
            for shard in range(source.num_shards):
                units = [source.read_unit(view, shard) for view in range(2)]
                for view in range(2):
                    for made, logit in ((centre, crop.read_unit(0, shard)), (following, units[1 - view])):
                        unit = made.read_unit(view, shard)
                        assert np.array_equal(unit["pixel_digest"], units[view]["pixel_digest"])
                        assert np.array_equal(unit["logit"], logit["logit"])
        assert following.spec.fingerprint != source.spec.fingerprint != centre.spec.fingerprint


@pytest.mark.slow
def test_a_derived_cache_may_answer_among_the_classes_present(work: Path) -> None:
    """The labels of one class only: all probability goes there; where every class is present, nothing changes."""
    _run(work)
    index = open_index(str(work / "out/shards/train"))
    only = replace(index, label_N=np.full_like(index.label_N, 2))
    with TeacherCache.open(work / "out/caches/lossless") as source:
        for name, labels in (("all", index), ("one", only)):
            derive(work / f"present-{name}.zarr", labels, source, "present")
            with TeacherCache.open(work / f"present-{name}.zarr") as present:
                assert "among the classes present" in present.spec.teacher.name
                before, after = source.read_unit(1, 0)["logit"], present.read_unit(1, 0)["logit"]
                assert np.array_equal(after[..., 2], before[..., 2])
                assert np.array_equal(after, before) == (name == "all")
                assert name == "all" or np.all(after[..., :2].max(-1) < after[..., 2] - 40)


UNLABELLED = """
[shards]
samples_per_shard = 18
photos_per_class = 6
classes = "folders"
[sets]
others = { skip = 6, labels = false }
none = { labels = false }
all = {}
[teacher]
name = "none"
trained_on = "train"
train = { model = "TINY", size = 32, epochs = 1 }
[views]
recipe = "plain"
size = 32
[student]
epochs = 1
batch_size = 16
repeats = 1
warmup_epochs = 0
ema_decay = 0.0
model_args = { patch_size = 16, embed_dim = 16, depth = 1, num_heads = 1 }
[caches]
few = { record = "dense8", views = 2 }
few-others = { record = "dense8", views = 2, photos = "train+others" }
none = { record = "dense8", views = 2, photos = "none" }
all = { record = "dense8", views = 2, photos = "all" }
[[sweeps]]
name = "few"
cache = "few"
weights = [0, 0.5]
seeds = 1
[[sweeps]]
name = "few-others"
cache = "few-others"
weights = [0.9]
seeds = 1
[[sweeps]]
name = "none"
cache = "none"
weights = [1]
seeds = 1
student = { epochs = 2 }
[[sweeps]]
name = "all"
cache = "all"
weights = [0]
seeds = 1
[[questions]]
name = "teaching"
title = "What are they worth?"
arms = [
  { label = "few", at = "few/none" },
  { label = "few taught", at = "few/soft-l0.5-t1" },
  { label = "joined", at = "few-others/soft-l0.9-t1" },
  { label = "no label", at = "none/soft-l1-t1" },
  { label = "all", at = "all/none" },
]
"""


@pytest.mark.slow
def test_a_study_of_photos_without_labels_trains_its_teacher_and_its_five_rows(work: Path) -> None:
    (work / "unlabelled.toml").write_text(UNLABELLED.replace("TINY", TINY))
    settings, out = read_settings(work / "unlabelled.toml"), work / "unlabelled"
    Stages(settings, work / "photos", out, _InProcess()).run()
    counts = {
        name: (index.num_samples, index.num_unlabelled)
        for name in ("train", "others", "none", "all")
        for index in [open_index(str(out / "shards" / name))]
    }
    assert counts == {"train": (18, 0), "others": (21, 21), "none": (39, 39), "all": (39, 0)}
    text = "\n".join(study_tables(settings, out))
    assert text.count("| 1 of 1 |") == 5
    run = read_run(out / "sweeps/none/cells/soft-l1-t1-s0")
    assert (run.setting("epochs", 0), run.setting("teacher_heads", "")) == (2, "both")
    names = ("class0", "class1", "class2")
    with TeacherCache.open(out / "caches" / "none") as opened:
        assert opened.header.class_names == names, "the shards have none: they are the teacher's"
    student = trained_as(out / "sweeps/none/cells/soft-l1-t1-s0/weights.safetensors")
    assert student is not None
    assert student.class_names == names
    shipped = read_settings(STUDY / "unlabelled.toml")
    assert [arm.at for arm in shipped.questions[0].arms] == [arm.at for arm in settings.questions[0].arms]


def test_a_study_whose_time_is_up_says_so_and_starts_nothing(work: Path, tmp_path: Path) -> None:
    with Commands(tmp_path, minutes=0) as commands, pytest.raises(SystemExit) as stopped:
        commands.run("shards", "make-shards", work / "photos" / "val", tmp_path / "val")
    assert stopped.value.code == STOPPED
    assert not (tmp_path / TIMES).exists()


def test_times_are_kept_of_failures_too(tmp_path: Path) -> None:
    with Commands(tmp_path) as commands, pytest.raises(SystemExit) as failed:
        commands.run("shards", "make-shards", tmp_path / "nothing", tmp_path / "out")
    line = json.loads((tmp_path / TIMES).read_text())
    assert line["stage"] == "shards"
    assert line["exit"] == failed.value.code != 0


@pytest.mark.parametrize("path", sorted(STUDY.glob("*.toml")), ids=lambda path: path.stem)
def test_the_settings_that_are_shipped_can_be_read(path: Path) -> None:
    assert read_settings(path).questions[0].name == "teaching"


def test_every_question_is_asked_by_some_settings() -> None:
    asked = {question.name for path in STUDY.glob("*.toml") for question in read_settings(path).questions}
    assert {"teaching", "online", "bytes", "views", "consistency", "teachers"} <= asked


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds = 2", "seeds = 0"), "seeds"),
        (("seeds = 2", "sedes = 2"), "sedes"),
        (('source = "lossless", record = "dense8"', 'source = "nothing", record = "dense8"'), "caches.small.source"),
        (('at = "teaching/none"', 'at = "teaching/nobody"'), "questions.teaching"),
        (('record = "dense", views = 2', 'record = "dense8", views = 2'), "record dense"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    text = SETTINGS.format(teacher=TINY, weights="w")
    assert change[0] in text
    (tmp_path / "study.toml").write_text(text.replace(change[0], change[1], 1))
    with pytest.raises(ValueError, match=words):
        read_settings(tmp_path / "study.toml")


def _arm(values: dict[int, float]) -> ArmResult:
    runs = {
        seed: Run(path=Path(f"s{seed}"), config={}, steps=(), epochs=(), summary={"top1": value})
        for seed, value in values.items()
    }
    return ArmResult(label="arm", runs=runs, wanted=len(values))


def test_differences_are_paired_by_seed_with_students_interval() -> None:
    found = paired(_arm({0: 51.0, 1: 54.0, 2: 57.0, 3: 99.0}), _arm({0: 50.0, 1: 52.0, 2: 54.0}))
    assert found.num_seeds == 3
    assert found.mean == pytest.approx(2.0)
    assert found.error == pytest.approx(1 / 3**0.5)
    assert found.interval == pytest.approx(4.303 / 3**0.5)
    one = paired(_arm({0: 51.0}), _arm({0: 50.0}))
    assert one.mean == 1.0
    assert one.interval != one.interval, "one seed knows nothing of the noise"


@pytest.mark.slow
def test_a_deviation_of_losses_is_seen(work: Path) -> None:
    _run(work)
    cells = work / "out" / "sweeps" / "teaching" / "cells"
    soft, none = read_run(cells / "soft-l0.5-t2-s0"), read_run(cells / "none-s0")
    assert deviation(soft, soft).largest == 0
    assert deviation(soft, none).num_equal == 0 < deviation(soft, none).num_losses
