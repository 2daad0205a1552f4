"""Teacher and shards of the same classes, through the commands: equal, reordered and said, or refused.

The teacher here looks at the mean colour of a picture and knows each class by its colour, so that it names the label of
every view where it answers in the order of the shards.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from shards.index.shard_index import ShardIndex, open_index
from student.learn.timm_model import bare_model
from student.recipe.papers import recipe_for
from student.run.export import ExportInfo, export_folder
from teacher_cache import TeacherCache
from teacher_cache.network.timm_network import published_class_lists
from tests.command_line import done, run

COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200), "dog": (200, 200, 30)}
SORTED, TURNED = "ant,bee,cat,dog", "dog,cat,bee,ant"
NUMBERS = [str(number) for number in range(11)]
SMALL = ["--size", "32", "--recipe", "plain", "--workers", "0", "--record", "dense", "--batch-size", "16"]
MODULE = """
import colorsys
import torch
from torch import nn

COLOURS = {colours}


class ByColour(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.register_buffer("colour_C3", torch.tensor([COLOURS[name] for name in names]) / 255)

    def forward(self, image_BCHW):
        return -40 * ((image_BCHW.mean((2, 3))[:, None] - self.colour_C3) ** 2).sum(-1)


def teacher(order, says=""):
    network = ByColour(order.split(","))
    network.mean, network.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if says:
        network.class_names = says.split(",")
    return network
"""


def colour_of(name: str) -> tuple[int, int, int]:
    """Of an animal, or of a number: its own."""
    if name in COLOURS:
        return COLOURS[name]
    number = int(name)
    return 10 + 80 * (number % 3), 10 + 80 * (number // 3 % 3), 30 + 200 * (number // 9)


def write_photos(folder: Path, names: list[str], count: int = 24) -> None:
    """A folder of nearly uniform pictures for each class."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(colour_of(name)) + rng.integers(-9, 10, (40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:02d}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the same photos with their classes in several orders, and lists of classes."""
    home = tmp_path_factory.mktemp("classes")
    for listed in (SORTED, TURNED, "ant,bee,cat,elk", "Ant,bee,cat,dog"):
        (home / f"{listed}.txt").write_text(listed.replace(",", "\n"))
    (home / "numbers.txt").write_text("\n".join(NUMBERS))
    write_photos(home / "photos", list(COLOURS))
    write_photos(home / "some", ["cat", "bee"])
    write_photos(home / "numbered", NUMBERS)
    done("make-shards", home / "photos", home / SORTED)
    done("make-shards", home / "photos", home / TURNED, "--class-names", home / f"{TURNED}.txt")
    done("make-shards", home / "some", home / "some of them")
    done("make-shards", home / "numbered", home / "numbers")
    done("make-shards", home / "photos", home / "nameless")
    index = open_index(str(home / "nameless"))
    replace(index, class_names=()).save(home / "nameless" / "shards.index")
    colours = {name: colour_of(name) for name in (*COLOURS, *NUMBERS)}
    (home / "by_colour.py").write_text(MODULE.replace("{colours}", repr(colours)))
    return home


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find modules of the user in the current folder."""
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))


def cached(shards: str, order: str, says: str, classes: str, cache: Path) -> Result:
    """cache-teacher on these shards with the colour teacher in that order."""
    said = ["--teacher-arg", f"says={says}"] if says else []
    typed = ["--teacher-classes", classes] if classes else []
    return run(
        "cache-teacher", "--shards", shards, "--cache", cache, "--views", "6", *SMALL,
        "--teacher", "by_colour:teacher", "--teacher-arg", f"order={order}", *said, *typed,
    )  # fmt: skip


ALL = "teacher accuracy on the augmented views 100.0 %"
MOVED = "classes: the same 4 classes in another order: class 0 is"
UNPROVEN = "nothing shows that both sides number the classes alike; "


@pytest.mark.parametrize(
    ("shards", "order", "says", "classes", "words", "silent"),
    [
        (SORTED, SORTED, SORTED, "", (ALL,), ("classes:", "warning")),
        (SORTED, TURNED, TURNED, "", (ALL, MOVED, "'ant' in the shards, 'dog' in the teacher"), ("warning",)),
        (TURNED, SORTED, SORTED, "", (ALL, MOVED), ("warning",)),
        (TURNED, TURNED, "", f"{TURNED}.txt", (ALL,), ("classes:", "warning")),
        (SORTED, TURNED, SORTED, f"{TURNED}.txt", (ALL, MOVED), ("warning",)),
        ("some of them", SORTED, SORTED, "", (ALL, "the 2 classes of the shards are among the 4 of the teacher"), ()),
        ("numbers", ",".join(NUMBERS), "", "numbers.txt", (ALL, "class 2 is '10' in the shards, '2' in"), ("warning",)),
        (SORTED, SORTED, "", "", (ALL, f"no class names in the teacher: {UNPROVEN}--teacher-classes"), ("warning",)),
        ("nameless", SORTED, SORTED, "", (ALL, f"in the shards: {UNPROVEN}check-shards"), ("warning",)),
        (SORTED, TURNED, "", "", (UNPROVEN, "warning: after the first chunk the teacher's first class"), (ALL,)),
        (
            "numbers", ",".join(NUMBERS), "", "",
            (UNPROVEN, "number 9 of 11 classes otherwise, its commonest answers: '10' as '9' (100 %), '2' as '10'"),
            (ALL,),
        ),
    ],
    ids=[
        "equal", "teacher turned", "shards turned", "equal by a list", "a list before what the teacher says", "a part",
        "natural order by a list", "teacher without names", "shards without names", "turned without names",
        "natural order without names",
    ],
)  # fmt: skip
def test_classes_are_proven_reordered_or_doubted(tmp_path, shards, order, says, classes, words, silent):
    """What names prove is applied and said in one line; without names every class is looked at."""
    result = cached(shards, order, says, classes, tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in words), result.output
    assert not [word for word in silent if word in result.output], result.output
    assert result.output.count("classes: ") <= 1
    index = open_index(shards)
    with TeacherCache.open(tmp_path / "c") as cache:
        proven = index.class_names if (says or classes) and index.class_names else ()
        assert cache.header.class_names == proven
        assert bool(cache.spec.teacher.class_order) == ("in another order" in result.output or "some" in shards)
        assert ALL not in result.output or first_classes(cache) == labels(index)


def first_classes(cache: TeacherCache) -> list[int]:
    """Of the first view of every sample."""
    return [int(row[0]) for shard in range(cache.num_shards) for row in cache.read_unit(0, shard)["class_index"][0]]


def labels(index: ShardIndex) -> list[int]:
    return index.label_N.tolist()


@pytest.mark.parametrize(
    ("shards", "order", "says", "classes", "words"),
    [
        (SORTED, SORTED, "apple,fig,kiwi,pear", "", "class 0 is 'ant' in the shards, 'apple' in the teacher; 0 of 4"),
        (SORTED, SORTED, "", "Ant,bee,cat,dog.txt", "'ant' in the shards, 'Ant' in the teacher (lower and upper case)"),
        (SORTED, SORTED, SORTED, "ant,bee,cat,elk.txt", "class 3 is 'dog' in the shards, 'elk' in the teacher; 3 of 4"),
        (SORTED, "ant,bee,cat", "ant,bee,cat", "", "class 3 of the shards, 'dog', is none of the 3 classes"),
        (SORTED, "ant,bee,cat", "", "", "answers in 3 classes, the shards have 4. Three ways"),
        (SORTED, SORTED, "ant,bee", "", "answers in 4 classes, got 2 class names"),
    ],
)
def test_other_classes_are_refused_before_the_first_forward(tmp_path, shards, order, says, classes, words):
    """Exit code 2, both names, and what to type; nothing is written."""
    result = cached(shards, order, says, classes, tmp_path / "c")
    assert result.exit_code == 2 and words in result.output, result.output
    assert not (tmp_path / "c" / "zarr.json").exists()
    assert "in the teacher" not in result.output or ": class " in result.output
    message = result.output[result.output.index("error") :]
    assert len(message) <= 640 and ("--teacher-classes" in message or "Three ways" in message)


def test_a_cache_goes_on_in_its_order_and_is_verified_in_it(tmp_path):
    """A teacher that says its names no more answers in the order of the cache; other names are refused."""
    cache = tmp_path / "c"
    assert cached(TURNED, SORTED, SORTED, "", cache).exit_code == 0
    more = ["cache-teacher", "--shards", TURNED, "--cache", cache, "--views", "12", *SMALL]
    teacher = ["--teacher", "by_colour:teacher", "--teacher-arg", f"order={SORTED}", "--teacher-arg", f"says={SORTED}"]
    said = done(*more, *teacher)
    assert MOVED in said and ALL in said
    asked = ["verify-cache", cache, "--shards", TURNED, "--blocks", "4"]
    assert "no problems" in done(*asked, *teacher).splitlines()[-1]
    other = run(*more[:-1], "16", *teacher, "--teacher-classes", f"{TURNED}.txt")
    assert other.exit_code == 1 and "by class names the answers belong in another order" in other.output


def test_a_cache_made_before_names_were_known_goes_on(tmp_path):
    """In the order of the teacher; where names say another order, it was taught wrongly and is not extended."""
    for shards, exit_code in ((SORTED, 0), (TURNED, 1)):
        cache = tmp_path / shards
        assert cached(shards, SORTED, "", "", cache).exit_code == 0
        again = cached(shards, SORTED, "", f"{SORTED}.txt", cache)
        assert again.exit_code == exit_code, again.output
        assert exit_code == 0 or "by class names the answers belong in another order" in again.output


def test_the_teacher_in_the_loop_is_put_in_order_too(tmp_path):
    """A student's answers are those of the classes of the shards."""
    said = run(
        "train-student", "--shards", TURNED, "--online", "--teacher", "by_colour:teacher",
        "--teacher-arg", f"order={SORTED}", "--teacher-classes", f"{SORTED}.txt", "--model", "test_resnet", "--epochs",
        "1", "--batch-size", "16", "--distill", "hard", "--set", "image_size=32", "--set", "view.name=plain",
        "--workers", "0", "--out", tmp_path / "run",
    )  # fmt: skip
    assert said.exit_code == 0 and said.output.count(MOVED) == 1, said.output


def test_a_run_says_which_cache_has_no_names(tmp_path):
    """A cache whose teacher said its classes is proven, and nothing is said."""
    for says, count in ((SORTED, 0), ("", 1)):
        assert cached(SORTED, SORTED, says, "", tmp_path / f"c{count}").exit_code == 0
        said = done(
            "train-student", "--shards", SORTED, "--cache", tmp_path / f"c{count}", "--model", "test_resnet",
            "--epochs", "1", "--batch-size", "16", "--workers", "0", "--out", tmp_path / f"run{count}",
        )  # fmt: skip
        assert said.count("was made without the class names of its teacher: nothing shows") == count


def test_students_are_evaluated_by_the_names_of_their_weights(tmp_path):
    """The same photos in shards of another order, or some of the classes, give the same hits as by hand."""
    recipe = replace(recipe_for("test_resnet"), model="test_resnet", image_size=32)
    network = bare_model("test_resnet", 4, image_size=32, arguments={})
    rgb = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    info = ExportInfo(
        recipe=recipe, mean=rgb[0], std=rgb[1], num_classes=4, class_names=tuple(SORTED.split(",")), fingerprints={},
        metrics={},
    )  # fmt: skip
    export_folder(network, tmp_path / "named", info)
    export_folder(network, tmp_path / "nameless", replace(info, class_names=()))
    export_folder(network, tmp_path / "others", replace(info, class_names=("ant", "bee", "cat", "elk")))

    def evaluated(shards: str, weights: str) -> tuple[dict[str, object], str]:
        result = run("evaluate", "--shards", shards, "--weights", tmp_path / weights, "--workers", "0", "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout), result.stderr

    straight, quiet = evaluated(SORTED, "named")
    turned, said = evaluated(TURNED, "named")
    assert straight == turned and "classes:" not in quiet
    assert said.count(f"{MOVED} 'dog' in the shards, 'ant' in the weights; labels are counted") == 1
    part, said = evaluated("some of them", "named")
    assert part["num_samples"] == 48 and "the 2 classes of the shards are among the 4 of the weights" in said
    assert "no class names in the weights" in evaluated(SORTED, "nameless")[1]
    assert "no class names in the shards" in evaluated("nameless", "named")[1]
    refused = run("evaluate", "--shards", SORTED, "--weights", tmp_path / "others")
    assert refused.exit_code == 2 and "class 3 is 'dog' in the shards, 'elk' in the weights" in refused.output


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("regnety_160.deit_in1k", 1000, "n01440764"),
        ("efficientnet_lite0", 1000, "n01440764"),
        ("hf-hub:timm/resnet50.a1_in1k", 1000, "n01440764"),
        ("resnetv2_101x1_bit.goog_in21k", 21843, "n00004475"),
        ("convnext_nano.in12k", 11821, "n00005787"),
        ("resmlp_12_224.fb_dino", 0, ""),
        ("vit_base_patch16_224.mae", 0, ""),
        ("hf-hub:somebody/net", 0, ""),
        ("local-dir:somewhere", 0, ""),
    ],
)
def test_timm_knows_the_classes_of_what_it_publishes_of_imagenet(name, count, first):
    """As WordNet ids, in the order of the weights."""
    lists = published_class_lists(name)
    assert len(lists[0] if lists else ()) == count
    assert not first or lists[0][0] == first
    assert all(len(set(names)) == count for names in lists)
    assert len(lists) == (2 if count == 1000 else bool(count))
