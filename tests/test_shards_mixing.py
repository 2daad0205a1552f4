"""Mixing by blocks: closed, keyed, exact, and distributed as DeiT's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from shards.views.mixing import block_mix, block_rows, num_blocks, prepare
from shards.views.view_recipe import recipe_named

RECIPE = recipe_named("deit", size=224, block_views=4)
PLAIN = recipe_named("plain", size=8)


def test_blocks_partition_every_shard_and_are_drawn_anew_for_each_view_block() -> None:
    for num_rows in (1, 15, 16, 17, 100):
        rows = [block_rows(RECIPE, "a.tar", num_rows, view) for view in range(8)]
        assert all(sorted(r.tolist()) == list(range(num_rows)) for r in rows)
        assert all((rows[0] == rows[v]).all() for v in range(4))
        assert num_rows == 1 or (rows[0] != rows[4]).any()
    assert (block_rows(RECIPE, "a.tar", 100, 0) != block_rows(RECIPE, "b.tar", 100, 0)).any()
    assert num_blocks(RECIPE, 33) == 3 and num_blocks(RECIPE, 33, full_only=True) == 2


def test_a_block_is_closed_under_mixing_and_a_pair_shares_lambda_and_box() -> None:
    for view in range(50):
        for num_rows in (1, 2, 15, 16):
            mix = block_mix(RECIPE, "a.tar", 3, num_rows, view)
            partner = mix.partner_N
            assert (partner[partner] == np.arange(num_rows)).all()
            assert (mix.lam_N[partner] == mix.lam_N).all() and (mix.box_N4[partner] == mix.box_N4).all()
            alone = partner == np.arange(num_rows)
            assert alone.sum() == num_rows % 2, "with mix_prob 1 only a lone last sample stays unmixed"
            assert (mix.lam_N[alone] == 1).all() and (mix.box_N4[alone] == 0).all()


def test_mixing_off_leaves_everything_alone() -> None:
    for off in ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, {"mix_prob": 0.0}, {"block_size": 1}):
        mix = block_mix(replace(RECIPE, **off), "a.tar", 0, 4, 0)
        assert (mix.lam_N == 1).all() and (mix.partner_N == np.arange(4)).all() and (mix.box_N4 == 0).all()


def _pairs(**overrides: float) -> tuple[np.ndarray, np.ndarray]:
    recipe = replace(RECIPE, **overrides)
    mixes = [block_mix(recipe, "a.tar", block, 2, view) for block in range(100) for view in range(200)]
    return np.array([m.lam_N[0] for m in mixes]), np.array([m.box_N4[0] for m in mixes], np.int64)


def test_lambda_and_box_area_are_distributed_as_in_timm_and_a_wrong_alpha_is_rejected() -> None:
    """20,000 pairs: Mixup's λ is Beta(.8, .8); the CutMix box has the area law of timm's rand_bbox."""
    from timm.data.mixup import rand_bbox

    lam, box = _pairs(cutmix_alpha=0.0)
    assert (box == 0).all()
    assert stats.kstest(lam, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(lam, stats.beta(1.0, 1.0).cdf).pvalue < 1e-6

    lam, box = _pairs(mixup_alpha=0.0)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / 224**2
    assert np.allclose(lam, 1 - area, atol=1e-6)
    np.random.seed(0)  # noqa: NPY002
    theirs = {}
    for alpha in (1.0, 0.8):
        boxes = np.array([rand_bbox((224, 224), np.random.beta(alpha, alpha)) for _ in range(20_000)])  # noqa: NPY002
        theirs[alpha] = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 224**2
    assert stats.ks_2samp(area, theirs[1.0]).pvalue > 1e-3
    assert stats.ks_2samp(area, theirs[0.8]).pvalue < 1e-6


def test_switch_and_mix_probabilities_are_the_recipes() -> None:
    _, box = _pairs(switch_prob=0.3, mixup_alpha=0.8)
    drawn = (box[:, 1] > 0).sum()
    # A CutMix box is empty in a few per cent of the draws, so compare with a run that always cuts.
    always = (_pairs(mixup_alpha=0.0)[1][:, 1] > 0).mean()
    assert stats.binomtest(int(drawn), len(box), 0.3 * always).pvalue > 1e-3
    lam, _ = _pairs(mix_prob=0.25, cutmix_alpha=0.0)
    assert stats.binomtest(int((lam < 1).sum()), len(lam), 0.25).pvalue > 1e-3


def _reference(view: np.ndarray, partner: np.ndarray, lam: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The textbook, one sample at a time, in float64."""
    x = (view.astype(np.float64) / 255 - np.array(PLAIN.mean)) / np.array(PLAIN.std)
    out = x.copy()
    for i, j in enumerate(partner):
        y0, y1, x0, x1 = box[i]
        if y1 > y0 and x1 > x0:
            out[i, y0:y1, x0:x1] = x[j, y0:y1, x0:x1]
        else:
            out[i] = lam[i] * x[i] + (1 - lam[i]) * x[j]
    return out.transpose(0, 3, 1, 2)


def test_prepare_is_the_textbook_and_exact_where_nothing_is_mixed() -> None:
    rng = np.random.default_rng(0)
    view = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    partner = np.array([1, 0, 3, 2, 4, 5], np.int32)
    lam = np.array([0.3, 0.3, 0.75, 0.75, 1, 1], np.float32)
    box = np.array([[0] * 4, [0] * 4, [2, 6, 0, 4], [2, 6, 0, 4], [0] * 4, [0] * 4], np.int16)
    got = prepare(*map(torch.from_numpy, (view, partner, lam, box)), mean=PLAIN.mean, std=PLAIN.std)
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.numpy(), _reference(view, partner, lam, box), atol=2e-6)
    alone = prepare(
        torch.from_numpy(view[4:]),
        torch.arange(2),
        torch.ones(2),
        torch.zeros(2, 4, dtype=torch.int16),
        mean=PLAIN.mean,
        std=PLAIN.std,
    )
    assert torch.equal(got[4:], alone)
    # Inside a CutMix box the pixels are the partner's to the bit.
    assert torch.equal(got[2, :, 2:6, 0:4], got[3, :, 2:6, 0:4].new_tensor(0) + _normalised(view[3])[:, 2:6, 0:4])


def _normalised(view: np.ndarray) -> torch.Tensor:
    one = torch.from_numpy(view[None])
    none = torch.zeros(1, 4, dtype=torch.int16)
    return prepare(one, torch.zeros(1), torch.ones(1), none, mean=PLAIN.mean, std=PLAIN.std)[0]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_prepare_of_whole_blocks_does_not_depend_on_the_batch(split: int) -> None:
    """Law 2 after mixing: blocks prepared together or apart give the same bits."""
    rng = np.random.default_rng(1)
    views = rng.integers(0, 256, (6, 4, 8, 8, 3), dtype=np.uint8)
    recipe = replace(RECIPE, size=8, block_size=4)
    mixes = [block_mix(recipe, "a.tar", block, 4, 0) for block in range(6)]

    def run(blocks: range) -> torch.Tensor:
        return prepare(
            torch.from_numpy(np.concatenate([views[b] for b in blocks])),
            torch.from_numpy(np.concatenate([mixes[b].partner_N + 4 * i for i, b in enumerate(blocks)])),
            torch.from_numpy(np.concatenate([mixes[b].lam_N for b in blocks])),
            torch.from_numpy(np.concatenate([mixes[b].box_N4 for b in blocks])),
            mean=recipe.mean,
            std=recipe.std,
        )

    apart = torch.cat([run(range(b, b + split)) for b in range(0, 6, split)])
    assert torch.equal(run(range(6)), apart)
