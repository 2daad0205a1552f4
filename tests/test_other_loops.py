"""The loops that docs/other-loops.md names run as they stand in examples/, and a feed's dicts are its batches."""

import pickle
import runpy
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from shards import ShardReader, World, open_index, recipe_named
from student import Feed
from teacher_cache import RecordFormat, build_cache, load_teacher, open_or_create
from tests.student_tiny import write_shards

ROOT = Path(__file__).parents[1]
LIBRARIES = {"huggingface_trainer.py": "transformers", "lightning_loop.py": "lightning"}
BATCHES = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards and the cache that the page takes for granted, of 128 images in five classes."""
    place = tmp_path_factory.mktemp("loops")
    write_shards(place / "shards" / "train", rows=(64, 64))
    index, recipe = open_index(str(place / "shards" / "train")), recipe_named("deit", size=32, block_views=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = timm.create_model("test_resnet", num_classes=index.num_classes).state_dict()
    save_file(state, place / "teacher.safetensors")
    teacher = load_teacher("test_resnet.r160_in1k", weights=place / "teacher.safetensors", input_size=32)
    record = RecordFormat.automatic(index.num_classes)
    with ShardReader(index) as reader:
        given: dict[str, Any] = {"num_views": 2, "reader": reader, "world": World()}
        *_, opened = open_or_create(place / "teacher.zarr", index, teacher, recipe, record, **given)
        with opened.cache as cache:  # type: ignore[union-attr]
            list(build_cache(cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=64))
    return place


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_page_names_the_loops_that_are_run(name: str) -> None:
    assert f"(../examples/{name})" in (ROOT / "docs" / "other-loops.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_loop_of_the_page_runs_both_epochs(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch of every epoch comes once, in the feed's order; what the trainer fetched is what the feed gave."""
    pytest.importorskip(LIBRARIES[name], reason=f"needs {LIBRARIES[name]}")
    monkeypatch.chdir(tmp_path)
    for linked in ("shards", "teacher.zarr"):
        (tmp_path / linked).symlink_to(place / linked)
    seen = []
    ready = Feed._ready

    def noted(self: Feed, rendered: Any, position: Any) -> Any:
        seen.append((position.epoch, position.step))
        return ready(self, rendered, position)

    monkeypatch.setattr(Feed, "_ready", noted)
    runpy.run_path(str(ROOT / "examples" / name))
    assert seen == [(epoch, step) for epoch in range(2) for step in range(BATCHES)]


def feed_of(place: Path, **options: Any) -> Feed:
    """A feed of the page's shards and cache."""
    options = {"batch_size": 64, "repeats": 1, "workers": 0, "device": "cpu", "cache": place / "teacher.zarr"} | options
    return Feed(place / "shards" / "train", **options)


def test_a_dict_has_the_tensors_of_its_batch(place: Path) -> None:
    with feed_of(place) as feed:
        batch = next(iter(feed.epoch(0)))
        values = batch.as_dict(2.0)
        assert all(isinstance(value, torch.Tensor) and len(value) == 64 for value in values.values())
        assert torch.equal(values["images"], batch.images) and torch.equal(values["targets"], batch.targets)
        assert torch.equal(values["labels"], batch.labels.label_B)
        assert torch.equal(values["teacher_log_prob"], batch.teacher.log_prob(2.0))
        assert torch.equal(values["teacher_hard"], batch.teacher.hard)
        assert values["row"].tolist() == batch.row.tolist()
        assert "teacher_log_prob" not in batch.as_dict()
    with feed_of(place, cache=None, views=recipe_named("deit", size=32)) as feed:
        batch = next(iter(feed.epoch(0)))
        assert {"images", "targets", "labels", "shard", "row", "view"} == batch.as_dict().keys()
        with pytest.raises(ValueError, match="has no teacher"):
            batch.as_dict(1.0)


@pytest.mark.parametrize("pickler", [pickle, ForkingPickler], ids=["pickle", "queue"])
def test_a_dict_goes_to_another_process_as_it_is(pickler: Any, place: Path) -> None:
    """The batch itself does not, where a cache stores 16-bit numbers: torch cannot read back its pickles of them."""
    with feed_of(place) as feed:
        values = next(iter(feed.epoch(0))).as_dict(2.0)
    received = pickle.loads(pickler.dumps(values))
    assert received.keys() == values.keys()
    assert all(torch.equal(value, received[name]) and value.dtype == received[name].dtype
               for name, value in values.items())  # fmt: skip


def rows(batch: dict[str, torch.Tensor]) -> list[tuple[int, int, int]]:
    """Which samples a dict holds."""
    return list(zip(*(batch[name].tolist() for name in ("shard", "row", "view")), strict=True))


def test_a_loader_moves_on_by_itself_and_is_the_epochs_in_order(place: Path) -> None:
    with feed_of(place) as feed:
        expected = [[rows(batch.as_dict()) for batch in feed.epoch(epoch)] for epoch in range(3)]
        loader = feed.loader()
        assert len(loader) == BATCHES
        assert [[rows(batch) for batch in loader] for _ in range(3)] == expected
        assert loader.epoch == 3
        later = feed.loader(first_epoch=2)
        iter(later)  # nothing was taken from it: the epoch is still the next one
        assert [rows(batch) for batch in later] == expected[2]
        for _ in later:
            break
        assert later.epoch == 4, "an epoch that was begun is over"
    with feed_of(place, epochs=1) as feed:
        loader = feed.loader()
        assert len(list(loader)) == BATCHES
        with pytest.raises(ValueError, match=r"epoch: expected a number in \[0, 1\)"):
            list(loader)
