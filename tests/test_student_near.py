"""`--pixels near`: what differs by rendering alone is accepted and counted; another image, crop or recipe never is."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import ArtefactError, CacheError
from shards.index.shard_index import ShardIndex
from shards.views import augment, mixing, view
from shards.views.behaviour import behaviour_parts
from shards.views.operations.table import OPERATIONS
from student.feed.feed import Feed
from student.feed.join import PixelCheck
from student.recipe.settings import TrainSettings
from student.run.run_events import NearAccepted
from teacher_cache.inspect.near import Tolerance, share_of, tolerance_of
from teacher_cache.store.cache import TeacherCache
from tests.student_tiny import BATCH, final_weights, loaded_batch, make_cache, run_to_end, views, write_shards

RECIPE = views(operations=("invert", "rotate"))
NEAR = TrainSettings(log_every=1, pixels="near")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardIndex, Path]:
    """Shards, and a cache of four views that are inverted and rotated."""
    folder = tmp_path_factory.mktemp("near")
    index = write_shards(folder / "shards")
    make_cache(folder / "cache.zarr", index, RECIPE, num_views=4).close()
    return index, folder / "cache.zarr"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a digest was is remembered in a process; another machine is another process."""
    behaviour_parts.cache_clear()
    yield
    behaviour_parts.cache_clear()


def other_kernel(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """A machine that rotates otherwise."""
    kernel = OPERATIONS["rotate2"].kernel
    assert kernel is not None
    changed = replace(OPERATIONS["rotate2"], kernel=lambda *given: change(kernel(*given)))
    monkeypatch.setitem(OPERATIONS, "rotate2", changed)


def one_level(image_HWC: np.ndarray) -> np.ndarray:
    """One value of one pixel is rounded the other way."""
    image_HWC[7, 5, 1] ^= 1
    return image_HWC


def opened(index: ShardIndex, cache: Path, pixels: str = "near") -> Feed:
    return Feed(index, cache=cache, batch_size=BATCH, repeats=1, workers=0, device="cpu", pixels=pixels)


def test_strict_is_the_default_and_names_what_differs(made: tuple[ShardIndex, Path], monkeypatch: Any) -> None:
    other_kernel(monkeypatch, one_level)
    for options in ({}, {"pixels": "strict"}):
        with pytest.raises(CacheError, match=r"renders other pixels .* in: rotate2; .*--pixels near"):
            Feed(made[0], cache=made[1], batch_size=BATCH, repeats=1, workers=0, device="cpu", **options)
    with pytest.raises(ValueError, match="pixels: expected one of strict, near, got 'far'"):
        opened(*made, pixels="far")


def test_views_that_differ_by_rendering_are_accepted_counted_and_written_down(
    made: tuple[ShardIndex, Path], monkeypatch: Any, tmp_path: Path
) -> None:
    """The number is that of the views with a rotation, and stands in events, summary and configuration."""
    other_kernel(monkeypatch, one_level)
    with TeacherCache.open(str(made[1])) as cache:
        events = run_to_end(tmp_path / "run", made[0], cache, settings=NEAR)
    (accepted,) = [event for event in events if isinstance(event, NearAccepted)]
    assert accepted.parts == ("rotate2",) and 0.35 < accepted.share < 0.55
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["pixels_checked"] == summary["images"]
    assert 0.2 < summary["pixels_mismatched"] / summary["images"] < 0.7
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["pixels"] == "near"


def test_near_changes_nothing_where_nothing_differs(made: tuple[ShardIndex, Path], tmp_path: Path) -> None:
    """And needs no word in the files of a strict run."""
    with TeacherCache.open(str(made[1])) as cache:
        for name, settings in (("strict", TrainSettings(log_every=1)), ("near", NEAR)):
            events = run_to_end(tmp_path / name, made[0], cache, settings=settings)
            assert events[-1].summary["pixels_mismatched"] == 0
    assert final_weights(tmp_path / "strict") == final_weights(tmp_path / "near")
    assert "pixels" not in json.loads((tmp_path / "strict" / "config.json").read_text())["train"]


def test_a_run_may_become_near_in_the_middle() -> None:
    """A run that died of a rounding is resumed with --pixels near: a checkpoint is not of the policy."""
    assert TrainSettings().identity() == NEAR.identity()


def other_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = view._draw_resized_crop
    monkeypatch.setattr(view, "_draw_resized_crop", lambda *given: drawn(*given)._replace(x=0))


def other_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = augment.draw_magnitude
    monkeypatch.setattr(augment, "draw_magnitude", lambda *given: drawn(*given) + 1e-6)


def other_mixing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = mixing._draw_pair
    monkeypatch.setattr(mixing, "_draw_pair", lambda *given: (drawn(*given)[0] * 0.999, drawn(*given)[1]))


def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters are the same, the pixels are those of a crop one pixel to the side."""
    resize = view.resize_window
    monkeypatch.setattr(view, "resize_window", lambda *given: np.roll(resize(*given), 1, axis=1))


def three_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    other_kernel(monkeypatch, lambda image_HWC: image_HWC ^ np.uint8(3))


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (other_crop, "draws other parameters"),
        (other_magnitude, "draws other parameters"),
        (other_mixing, "draws other parameters"),
        (shifted, "more than rounding differs.* decode by .*crop by"),
        (three_levels, "more than rounding differs.*rotate2 by"),
    ],
)
def test_another_crop_is_refused_before_the_first_step(
    made: tuple[ShardIndex, Path], monkeypatch: Any, machine: Callable[[Any], None], message: str
) -> None:
    machine(monkeypatch)
    with pytest.raises(CacheError, match=message):
        opened(*made)


def test_another_image_is_refused(made: tuple[ShardIndex, Path], tmp_path: Path) -> None:
    """Other shards by their index; other bytes under the same index by the checksum of each image."""
    index, cache = made
    other = write_shards(tmp_path / "other", seed=1)
    with pytest.raises(CacheError, match="made from other shards"):
        opened(other, cache)
    again = write_shards(tmp_path / "again")
    assert again.fingerprint == index.fingerprint
    first = sorted((tmp_path / "again").glob("*.tar"))[0]
    data = bytearray(first.read_bytes())
    at = data.index(b"\x89PNG") + 60
    data[at] ^= 1
    first.write_bytes(data)
    with opened(again, cache) as feed, pytest.raises(ArtefactError, match="crc32c"):
        list(feed.epoch(0))


def test_another_recipe_is_refused(made: tuple[ShardIndex, Path], tmp_path: Path) -> None:
    """The recipe is the cache's own, under the fingerprint of its spec."""
    shutil.copytree(made[1], tmp_path / "cache.zarr")
    root = tmp_path / "cache.zarr" / "zarr.json"
    text = root.read_text()
    assert '"flip": 0.5' in text
    root.write_text(text.replace('"flip": 0.5', '"flip": 0.4'))
    with pytest.raises(CacheError):
        opened(made[0], tmp_path / "cache.zarr")


def test_more_views_than_a_share_explains_are_refused(made: tuple[ShardIndex, Path], monkeypatch: Any) -> None:
    """A machine whose probes are right and whose views are not: the bound ends the run in its first batch."""
    with opened(*made) as feed:
        assert feed.tolerances == (Tolerance(parts=(), share=0.0),)
        rendered = view.render
        monkeypatch.setattr(view, "render", lambda *given: rendered(*given) ^ np.uint8(1))
        with pytest.raises(CacheError, match=r"16 of 16 samples .* explains at most 1: more than rendering differs"):
            list(feed.epoch(0))


def test_one_rounding_that_no_probe_met_does_not_end_a_run() -> None:
    """One in 10,000 views, and the first; the next one does."""
    check = PixelCheck(lambda shard, row: ("shard", "key"), Tolerance(parts=(), share=0.0))
    some = loaded_batch()
    digest_B = some.pixel_digest_B.copy()
    digest_B[17] ^= 1
    check.compare(some, digest_B)
    assert (check.checked, check.near) == (50, 1)
    check.compare(some, some.pixel_digest_B)
    with pytest.raises(CacheError, match="2 of 150 views differed so far"):
        check.compare(some, digest_B)


def test_the_number_of_near_views_is_bounded_by_what_can_have_the_part() -> None:
    """Six standard deviations above the share: it does not end an honest run, and half as many again does."""
    half = Tolerance(parts=("rotate",), share=0.065)
    assert half.allowed(1_000_000) < 67_000 and half.allowed(16) < 8
    counts = np.random.Generator(np.random.PCG64(0)).binomial(1, 0.065, (200, 20_000)).cumsum(1)
    allowed = np.array([half.allowed(n + 1) for n in range(20_000)])
    assert (counts <= allowed).all()
    assert Tolerance(parts=("decode",), share=1.0).allowed(1000) == 1000


def test_shares_are_those_of_the_recipe() -> None:
    deit = views()
    assert share_of(deit, ()) == 0.0 and share_of(deit, ("crop", "rotate2")) == 1.0
    assert share_of(deit, ("rotate2",)) == pytest.approx(1 - (1 - 1 / 30) ** 2, abs=0.02)
    assert share_of(deit, ("flip",)) == pytest.approx(0.5, abs=0.05)
    assert share_of(deit, ("rotate",)) == 0.0, "a version that the recipe does not use explains nothing"


def test_a_cache_of_the_first_version_is_near_where_its_digest_is_the_same(monkeypatch: Any) -> None:
    """It cannot say what differs: the table of what machines render says it, or nothing does and it is refused."""
    golden = Path(__file__).parent / "golden" / "v0.1.0" / "lowrank.zarr"
    with TeacherCache.open(str(golden)) as cache:
        assert tolerance_of(cache) == Tolerance(parts=(), share=0.0)
        other = replace(OPERATIONS["invert"], table=None, kernel=lambda image, *_: image ^ np.uint8(1))
        monkeypatch.setitem(OPERATIONS, "invert", other)
        behaviour_parts.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr("teacher_cache.inspect.near.behaviour_like", lambda recorded, recipe: "f" * 64)
            with pytest.raises(CacheError, match="does not say what differs"):
                tolerance_of(cache)
