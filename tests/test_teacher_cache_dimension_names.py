"""Every field names its own last axis, so that xarray opens a cache; caches with the former names stay valid."""

import json
from pathlib import Path

import numpy as np
import pytest

from teacher_cache.inspect.verify import verify_digests
from teacher_cache.record.kinds.table import KINDS
from teacher_cache.store.cache import TeacherCache
from tests.cache_maker import make_cache


@pytest.mark.parametrize("kind", KINDS)
def test_axes_of_one_name_have_one_length(tmp_path: Path, kind: str) -> None:
    """What xarray asks of a group of arrays; each array names every axis once."""
    make_cache(tmp_path / "c", rows=(7, 5), num_views=6, kind=kind)
    lengths: dict[str, int] = {}
    for path in sorted((tmp_path / "c").glob("*/zarr.json")):
        meta = json.loads(path.read_text())
        if meta["node_type"] == "array":
            assert len(set(meta["dimension_names"])) == len(meta["shape"]), path
            for name, length in zip(meta["dimension_names"], meta["shape"], strict=True):
                assert lengths.setdefault(name, length) == length, (path, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_xarray_opens_a_cache_and_reads_its_numbers(tmp_path: Path, kind: str) -> None:
    xarray = pytest.importorskip("xarray", reason="needs xarray")
    make_cache(tmp_path / "c", rows=(7, 5), num_views=6, kind=kind)
    opened = xarray.open_zarr(tmp_path / "c", consolidated=False, chunks=None, mask_and_scale=False)
    with TeacherCache.open(tmp_path / "c") as cache:
        for name, array in cache.read_unit(1, 0).items():
            if not name.startswith("fidelity"):
                found = opened[name].isel(view=slice(3, 6), shard=0, row=slice(0, 7)).values
                np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_with_the_former_names_opens_verifies_and_grows(tmp_path: Path, kind: str) -> None:
    """Caches of 0.2 and before call the last axis of every field "value"."""
    make_cache(tmp_path / "c", rows=(7, 5), num_views=6, kind=kind)
    renamed = 0
    for path in (tmp_path / "c").glob("*/zarr.json"):
        meta = json.loads(path.read_text())
        names = ["value" if name.endswith("_value") else name for name in meta.get("dimension_names") or ()]
        renamed += "value" in names
        path.write_text(json.dumps(meta | ({"dimension_names": names} if names else {})))
    assert renamed
    with TeacherCache.open(tmp_path / "c", writable=True) as cache:
        before = cache.read_unit(1, 1)
        assert not [event.problem for event in verify_digests(cache) if event.problem]
        cache.grow(9)
    with TeacherCache.open(tmp_path / "c") as cache:
        assert cache.num_views == 9
        for name, array in cache.read_unit(1, 1).items():
            np.testing.assert_array_equal(array, before[name])
