"""docs/dev/architecture.md says what is: its files exist, its folders are those of the code, its examples run."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.views.operations.operation import OperationKind
from student.learn.losses.distill_loss import DistillLoss
from teacher_cache.record.kinds.record_kind import RecordKind
from teacher_cache.record.record_format import RecordFormat
from tests.test_layering import LAYERS, ROOMS, full_folders

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "dev" / "architecture.md").read_text()
NEW_FILE = re.compile(r"^    # (\S+\.py)\n((?:    .*\n|\n)+)", re.M)
CITED = re.compile(r"\blaws? (\d+)", re.I)
EXAMPLES = {path: textwrap.dedent(code) for path, code in NEW_FILE.findall(TEXT)}


def made(path: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[path], path, "exec"), names)
    return names


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:shards|teacher_cache|student|tests|examples)/[\w/.]*)`", TEXT))
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists() and not name.endswith("prepare")]
    for page in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / "docs" / "dev" / page).exists(), page


def test_every_law_that_is_cited_is_on_the_page_and_its_tests_exist() -> None:
    page = (ROOT / "docs" / "dev" / "laws.md").read_text()
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", page, re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not [path for path in re.findall(r"`(tests/\w+\.py)`", page) if not (ROOT / path).is_file()]
    files = [path for layer in (*LAYERS[:3], "tests", "docs") for path in (ROOT / layer).rglob("*.[pm][yd]")]
    cited = {(path.name, int(number)) for path in files for number in CITED.findall(path.read_text())}
    assert len(cited) > 20 and not [citation for citation in cited if citation[1] not in numbers]


def test_every_room_is_in_the_list_in_the_order_of_the_imports() -> None:
    listed = TEXT[TEXT.index("## Folders") : TEXT.index("One place imports each dependency")]
    for package, rooms in ROOMS.items():
        part = listed[listed.index(f"    {package}/") :]
        folders = [
            room.replace(".", "/") for room in rooms if (ROOT / package / room.replace(".", "/")).is_dir() and room
        ]
        places = [part.find(f"      {folder}/ ") for folder in folders]
        assert -1 not in places, [folder for folder, place in zip(folders, places, strict=True) if place < 0]
        assert places == sorted(places), package


@pytest.mark.parametrize("path", EXAMPLES)
def test_every_example_is_one_new_file_beside_a_table(path: str) -> None:
    assert not (ROOT / path).exists() and ((ROOT / path).parent / "table.py").exists()
    assert not full_folders([path]), "one more file must fit in the folder"


def test_the_examples_work() -> None:
    assert len(EXAMPLES) == 3
    half = made("teacher_cache/record/kinds/half.py")["HALF"]
    assert isinstance(half, RecordKind)
    logit_BC = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    codec = half.codec(RecordFormat.chosen("dense", 10), None)
    fields = {name: torch.from_numpy(values) for name, values in codec.encode(logit_BC).items() if name == "half"}
    expected = torch.from_numpy(logit_BC).div(2).log_softmax(-1)
    assert torch.allclose(codec.log_prob(fields, 2.0), expected, atol=1e-2)
    mirror = made("shards/views/operations/mirror.py")["MIRROR"]
    assert isinstance(mirror, OperationKind) and mirror.kernel is not None
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (mirror.kernel(image, 0.0, (0, 0, 0)) == image[::-1]).all()
    assert isinstance(made("student/learn/losses/squared.py")["SQUARED"], DistillLoss)
