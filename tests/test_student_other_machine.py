"""A machine that renders, draws or reads something else than the cache's maker is refused, and told what to do."""

import re
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
from teacher_cache.store import libraries
from tests.student_tiny import BATCH, make_cache, views, write_shards

RECIPE = views(operations=("invert", "rotate"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardIndex, Path]:
    """Shards, and a cache of four views that are inverted and rotated."""
    folder = tmp_path_factory.mktemp("machine")
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


def opened(index: ShardIndex, cache: Path) -> Feed:
    return Feed(index, cache=cache, batch_size=BATCH, repeats=1, workers=0, device="cpu")


def test_a_rounding_names_the_operation_and_the_versions_to_install(
    made: tuple[ShardIndex, Path], monkeypatch: Any
) -> None:
    """The install line pins what differs here, and nothing else; equal versions are said to be equal."""
    other_kernel(monkeypatch, one_level)
    with pytest.raises(CacheError, match=r"renders other pixels .* in: rotate2; the library versions are the same"):
        opened(*made)
    here = libraries.library_versions()
    monkeypatch.setattr(libraries, "library_versions", lambda: here | {"simplejpeg": "0.1", "zarr": "0.1"})
    expected = rf"in: rotate2; install .*\(pip install simplejpeg=={re.escape(here['simplejpeg'])}\)"
    with pytest.raises(CacheError, match=expected):
        opened(*made)


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
        (other_crop, "in: draw, crop"),
        (other_magnitude, "in: draw;"),
        (other_mixing, "in: draw;"),
        (shifted, "in: decode, crop"),
        (three_levels, "in: rotate2;"),
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


def test_a_machine_whose_probes_are_right_and_whose_views_are_not_is_stopped_in_its_first_batch(
    made: tuple[ShardIndex, Path], monkeypatch: Any
) -> None:
    with opened(*made) as feed:
        rendered = view.render
        monkeypatch.setattr(view, "render", lambda *given: rendered(*given) ^ np.uint8(1))
        with pytest.raises(CacheError, match=r"16 of 16 samples .*make the cache here"):
            list(feed.epoch(0))
