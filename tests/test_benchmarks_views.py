"""benchmarks.views: every side renders the photos, and the ratios that documents quote are there."""

import io
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from benchmarks import views

RATIOS = {"ratio_single", "ratio_repeated3", "ratio_views8", "ratio_single_compact", "ratio_timm_compact"}


def _photos() -> list[bytes]:
    buffers = [io.BytesIO() for _ in range(2)]
    for buffer, name in zip(buffers, ("coffee", "chelsea"), strict=True):
        Image.fromarray(getattr(skimage.data, name)()).save(buffer, "JPEG", quality=90)
    return [buffer.getvalue() for buffer in buffers]


@pytest.mark.slow
def test_all_sides_are_measured() -> None:
    views.work_around_posterize()
    ratios = views.measure_ratios(_photos(), _photos(), 1)
    assert set(ratios) >= RATIOS and all(value > 0 for value in ratios.values())
    assert not any("dali" in name for name in ratios)


@pytest.mark.slow
def test_dali_is_measured_where_it_is_installed() -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra peers")
    ratios = views.measure_ratios(_photos(), _photos(), 1, dali=True)
    assert set(ratios) >= {"ratio_dali", "ratio_dali_no_rand_augment", "ratio_single_to_dali"}


def test_dali_is_named_by_the_command_and_its_extra() -> None:
    root = Path(__file__).parents[1]
    assert "--dali" in (root / "docs" / "commands.md").read_text()
    assert 'peers = ["nvidia-dali' in (root / "pyproject.toml").read_text()
