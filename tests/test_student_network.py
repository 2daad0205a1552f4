"""The student network: what timm leaves to the caller, and where it would be wrong in silence."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import RunError
from student.feed.answers import TeacherAnswer, answer_from_logits
from student.feed.batch import Labels
from student.learn.loss import student_loss
from student.learn.network import Heads, fastest_layout, has_dist, heads, load_initial, load_weights, make_student
from student.learn.optimiser import make_optimizer
from student.recipe.papers import recipe_for
from student.recipe.student_recipe import StudentRecipe
from student.recipe.zoo import MODELS

TWO, ONE, LS = "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "deit3_tiny_patch16_224"


def small(model: str = TWO, **changes: object) -> StudentRecipe:
    """The model's own recipe at 32 px: four patches."""
    return replace(recipe_for(model), **({"image_size": 32} | changes))  # type: ignore[arg-type]


def images(seed: int, size: int = 32, count: int = 2) -> torch.Tensor:
    """Random normalised images."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def losses_of(model: nn.Module, recipe: StudentRecipe, x: torch.Tensor) -> torch.Tensor:
    """The recipe's loss on made-up labels and a made-up teacher."""
    label_B = torch.arange(len(x)) % 5
    teacher = TeacherAnswer(label_B) if recipe.distill != "none" else None
    return student_loss(heads(model, x), Labels.of(label_B), teacher, recipe).total


def test_heads_are_apart_in_training_and_in_evaluation() -> None:
    """timm gives the average, silently, unless told and in training mode; here both modes give both heads."""
    model = make_student(small(drop_path=0.0), 5, seed=0)
    x = images(1)
    training = heads(model, x)
    evaluation = heads(model.eval(), x)
    assert training.dist_BC is not None and evaluation.dist_BC is not None
    assert not torch.allclose(training.cls_BC, training.dist_BC)
    torch.testing.assert_close(training.cls_BC, evaluation.cls_BC)
    torch.testing.assert_close(training.dist_BC, evaluation.dist_BC)
    torch.testing.assert_close(evaluation.average(), model(x))  # what plain timm answers


def test_one_headed_students_have_one_head() -> None:
    """The answer at inference is the only head."""
    model = make_student(small(ONE), 5, seed=0).eval()
    answer = heads(model, images(2))
    assert answer.dist_BC is None and not has_dist(model)
    assert torch.equal(answer.average(), answer.cls_BC)
    assert set(answer.by_name()) == {"cls"}


def test_without_a_teacher_the_average_of_the_heads_is_trained() -> None:
    """Else DIST would stay random, and half of the answer of the exported model with it."""
    model = make_student(small(distill="none", drop_path=0.0), 5, seed=0)
    x = images(3)
    training, evaluation = heads(model, x), heads(model.eval(), x)
    assert training.dist_BC is None
    torch.testing.assert_close(training.cls_BC, evaluation.average())


@pytest.mark.parametrize("distill", ["none", "hard", "soft"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("name", [TWO, LS])
@pytest.mark.slow
def test_every_trained_parameter_has_a_gradient_in_every_mode(name: str, distill: str, weight: float) -> None:
    """DistributedDataParallel fails on parameters without one; at λ = 0 and 1 the gradient is zero, not absent."""
    recipe = small(name, distill=distill, distill_weight=weight)
    model = make_student(recipe, 5, seed=0)
    label_B = torch.tensor([0, 1])
    teacher = None if distill == "none" else TeacherAnswer(label_B, lambda _: torch.full((2, 5), -1.6094379))
    student_loss(heads(model, images(4)), Labels.of(label_B), teacher, recipe).total.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.fixture
def lone_group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("distill", ["none", "hard"])
@pytest.mark.slow
def test_ddp_runs_without_looking_for_unused_parameters(lone_group: None, distill: str) -> None:
    """The second step is where DDP notices; the wrapped step equals the bare one, and evaluation unwraps."""
    recipe = small(distill=distill, distill_weight=1.0 if distill == "hard" else 0.5, drop_path=0.0)
    bare, inner = make_student(recipe, 5, seed=0), make_student(recipe, 5, seed=0)
    wrapped = DistributedDataParallel(inner)
    for model in (bare, wrapped):
        optimizer = make_optimizer(model, recipe)
        for step in range(3):
            optimizer.zero_grad()
            losses_of(model, recipe, images(step)).backward()
            optimizer.step()
    for a, b in zip(bare.parameters(), inner.parameters(), strict=True):
        assert torch.equal(a, b)
    assert heads(wrapped.eval(), images(9)).dist_BC is not None


def test_initial_weights_depend_on_the_seed_alone() -> None:
    """Not on what was drawn before, and nothing after depends on them."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = make_student(small(), 5, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = make_student(small(), 5, seed=7), make_student(small(), 5, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.patch_embed.proj.weight, other.patch_embed.proj.weight)


def rates(model: nn.Module) -> list[float]:
    """Drop path of every block; both branches agree."""
    pairs = [(block.drop_path1, block.drop_path2) for block in model.blocks]
    values = [tuple(b.drop_prob if isinstance(b, DropPath) else 0.0 for b in pair) for pair in pairs]
    assert all(a == b for a, b in values)
    return [a for a, _ in values]


def test_drop_path_is_linear_in_deit_and_uniform_in_deit3() -> None:
    """DeiT: 0 → rate over depth. The authors' code of DeiT-III gives every block the full rate; timm does not."""
    assert rates(make_student(small(drop_path=0.11), 5, seed=0)) == pytest.approx(
        [0.01 * i for i in range(12)], abs=1e-7
    )
    assert rates(make_student(small(LS), 5, seed=0)) == [0.05] * 12
    assert rates(make_student(small(LS, drop_path_shape="linear"), 5, seed=0)) != [0.05] * 12
    assert rates(make_student(small(LS, drop_path=0.0), 5, seed=0)) == [0.0] * 12


@pytest.mark.parametrize(("init", "expected"), [(1e-4, 1e-4), (0.0, 1e-6)])
def test_layer_scale_starts_as_in_the_authors_code_or_as_in_timm(init: float, expected: float) -> None:
    """1e-4 is the authors', 1e-6 timm's."""
    model = make_student(small(LS, layer_scale_init=init), 5, seed=0)
    gammas = torch.cat([scale.gamma for block in model.blocks for scale in (block.ls1, block.ls2)])
    assert torch.equal(gammas, torch.full_like(gammas, expected))


BAD = [
    (replace(recipe_for("deit_tiny_distilled_patch16_24")), "the nearest is 'deit_tiny_distilled_patch16_224'"),
    (small(TWO, layer_scale_init=1e-4), "has no LayerScale"),
    (replace(recipe_for("resnet10t"), drop_path_shape="uniform"), "uniform needs a vision transformer"),
    (replace(recipe_for("vgg11")), "cannot be built .*drop_path_rate"),
    (recipe_for("deit_base_patch16_384"), "init_weights: recipe 'deit_finetune384' fine-tunes"),
]


@pytest.mark.parametrize(("recipe", "message"), BAD, ids=["name", "scale", "uniform", "vgg", "finetune"])
def test_what_cannot_be_built_is_refused(recipe: StudentRecipe, message: str) -> None:
    """Each message names the field or the model, and what to do."""
    with pytest.raises(ValueError, match=message):
        make_student(recipe, 5, seed=0)


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
@pytest.mark.slow
def test_any_other_timm_model_learns_with_one_head(name: str) -> None:
    """Convolutional and hierarchical students take a step; those with a fixed input get the recipe's resolution."""
    recipe = replace(recipe_for(name, with_cache=True), image_size=64)
    model = make_student(recipe, 5, seed=0)
    loss = losses_of(model, recipe, images(5, 64))
    loss.backward()
    make_optimizer(model, recipe).step()
    assert torch.isfinite(loss) and heads(model, images(5, 64)).dist_BC is None


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.slow
def test_every_model_takes_a_step_at_its_real_resolution(name: str) -> None:
    """Forward, loss, backward and optimiser: the tiny ones in memory, the others on the meta device.

    On two images, since BatchNorm refuses one. `python -m benchmarks.student_steps` has all but the huge one in memory.
    """
    entry = MODELS[name]
    stage = len(entry.recipes) - 1
    recipe = replace(recipe_for(name, stage=stage), finetune=False)
    device = "cpu" if entry.params_m is not None and entry.params_m < 6 else "meta"
    model = make_student(recipe, 1000, seed=0, device=device)
    with torch.device(device):
        x, label_B = torch.zeros(2, 3, entry.image_size, entry.image_size), torch.zeros(2, dtype=torch.int64)
    optimizer = make_optimizer(model, recipe)
    answer = heads(model, x)
    teacher = answer_from_logits(torch.zeros(2, 1000, device=device)) if recipe.distill != "none" else None
    loss = base_and_distill(answer, label_B, teacher, recipe, device)
    loss.backward()
    optimizer.step()
    assert answer.cls_BC.shape == (2, 1000) and (answer.dist_BC is None) == (not entry.distilled)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def base_and_distill(
    answer: Heads, label_B: torch.Tensor, teacher: TeacherAnswer | None, recipe: StudentRecipe, device: str
) -> torch.Tensor:
    """The loss; torch has no autocast for the meta device, so there the two parts stand for it."""
    if device != "meta":
        return student_loss(answer, Labels.of(label_B), teacher, recipe).total
    return sum((head.float().logsumexp(-1).mean() for head in (answer.cls_BC, answer.dist_BC) if head is not None),
               torch.zeros((), device="meta"))  # fmt: skip


@pytest.mark.parametrize("name", [ONE, TWO, LS])
@pytest.mark.slow
def test_a_finer_grid_is_the_bicubic_resize_of_the_old_one(tmp_path: Path, name: str) -> None:
    """Class and distillation positions are kept; the grid is resized as the authors do: bicubic, no antialiasing."""
    old = make_student(small(name), 5, seed=1)
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    fine = small(name, image_size=48, finetune=True, init_weights=str(tmp_path / "old.safetensors"))
    new = make_student(fine, 5, seed=2)
    prefix = old.pos_embed.shape[1] - 4
    assert prefix == {ONE: 1, TWO: 2, LS: 0}[name] and new.pos_embed.shape[1] == prefix + 9
    assert torch.equal(new.pos_embed[:, :prefix], old.pos_embed[:, :prefix])
    grid = old.pos_embed[:, prefix:].view(1, 2, 2, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, (3, 3), mode="bicubic", align_corners=False)
    torch.testing.assert_close(new.pos_embed[:, prefix:], resized.permute(0, 2, 3, 1).reshape(1, 9, -1))
    others = {n: v for n, v in old.state_dict().items() if n != "pos_embed"}
    assert all(torch.equal(new.state_dict()[n], value) for n, value in others.items())


def test_a_224_model_becomes_a_384_model(tmp_path: Path) -> None:
    """The step of the papers: 14 × 14 to 24 × 24 positions, and the finer model still knows the coarser image."""
    old = make_student(replace(recipe_for(TWO), drop_path=0.0), 5, seed=1)
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    recipe = replace(
        recipe_for("deit_base_distilled_patch16_384"), model=TWO, init_weights=str(tmp_path / "old.safetensors")
    )
    new = make_student(recipe, 5, seed=2)
    assert (new.pos_embed.shape, old.pos_embed.shape) == ((1, 578, 192), (1, 198, 192))
    assert heads(new, images(6, 384, 1)).cls_BC.shape == (1, 5)


def test_a_new_class_count_gets_a_fresh_classifier_and_says_so(tmp_path: Path) -> None:
    """Fine-tuning on other classes; evaluation with such weights would be noise, so there it is an error."""
    save_file(make_student(small(), 7, seed=1).state_dict(), tmp_path / "old.safetensors")
    model = make_student(small(), 5, seed=2)
    report = load_weights(model, tmp_path / "old.safetensors", start=True)
    assert set(report.fresh) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    with pytest.raises(RunError, match=r": 4 of another shape \(head"):
        load_weights(model, tmp_path / "old.safetensors")


def test_weights_of_the_authors_load(tmp_path: Path) -> None:
    """Their files are torch pickles under "model", and name LayerScale gamma_1."""
    source = make_student(small(LS), 5, seed=1)
    with torch.no_grad():
        source.blocks[3].ls1.gamma.fill_(0.25)
    state = {
        n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for n, v in source.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "theirs.pth")
    model = make_student(small(LS), 5, seed=2)
    assert load_weights(model, tmp_path / "theirs.pth").fresh == ()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    """One clean message each; never half a model."""
    model = make_student(small(), 5, seed=0)
    save_file(make_student(small(ONE), 5, seed=0).state_dict(), tmp_path / "one.safetensors")
    with pytest.raises(RunError, match=r": \d+ missing \(blocks.10.attn") as refused:
        save_file(make_student(small(model_args=(("depth", 2),)), 5, seed=0).state_dict(), tmp_path / "two.safetensors")
        load_weights(model, tmp_path / "two.safetensors", start=True)
    assert "a vision transformer of width 192, 2 blocks, patches of 16 px, with distillation token at 32 px" in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {**state, "fc_norm.bias": torch.zeros(192), "fc_norm.weight": torch.ones(192)},
            "2 unknown (fc_norm.bias, fc_norm.weight); the rest fits: give the model that has these tensors too, or a "
            "file without them",
        ),
        (
            lambda state: {name: value for name, value in state.items() if name != "cls_token"},
            "1 missing (cls_token); give weights of the same architecture and class count",
        ),
        (
            lambda state: {**state, "norm.bias": torch.zeros(3), "more": torch.zeros(1)},
            "1 unknown (more); 1 of another shape (norm.bias: (3,) for (192,)); give weights of the same architecture "
            "and class count",
        ),
    ],
)
def test_weights_that_nearly_fit_are_told_what_does_not(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    """Nothing is listed that is empty, and a file of this very architecture is not told to be of another."""
    model = make_student(small(ONE), 5, seed=0)
    save_file(change(model.state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(RunError) as refused:
        load_weights(model, tmp_path / "w.safetensors", start=True)
    assert str(refused.value) == f"weights {tmp_path}/w.safetensors: do not fit VisionTransformer: {words}"


def test_a_distilled_student_starts_from_plain_weights_with_a_token_of_its_own(tmp_path: Path) -> None:
    """The token, its position and its head are new, everything else is the file's; both are said."""
    old, new, fresh = (
        make_student(small(ONE), 5, seed=1),
        make_student(small(), 5, seed=2),
        make_student(small(), 5, seed=2),
    )
    save_file(old.state_dict(), tmp_path / "w.safetensors")
    report = load_initial(new, str(tmp_path / "w.safetensors"))
    assert report.words == ("dist_token, its position begin at random; head_dist.weight, head_dist.bias begin at zero")
    theirs, own, drawn = old.state_dict(), new.state_dict(), fresh.state_dict()
    assert torch.equal(own["dist_token"], drawn["dist_token"]) and not own["head_dist.weight"].any()
    assert torch.equal(own["pos_embed"][:, 1], drawn["pos_embed"][:, 1])
    assert torch.equal(own["pos_embed"][:, [0, 2, 3, 4, 5]], theirs["pos_embed"])
    assert all(torch.equal(own[name], value) for name, value in theirs.items() if name != "pos_embed")


def test_a_plain_student_starts_from_distilled_weights_without_their_token(tmp_path: Path) -> None:
    """Also at another size and with other classes."""
    old = make_student(small(), 7, seed=1)
    save_file(old.state_dict(), tmp_path / "w.safetensors")
    new = make_student(small(ONE, image_size=64), 5, seed=2)
    report = load_initial(new, str(tmp_path / "w.safetensors"))
    for said in ("pos_embed is resized", "dist_token, head_dist.bias, head_dist.weight, its position are left out"):
        assert said in report.words, report.words
    assert report.words.endswith("head.weight, head.bias begin at zero")
    same = make_student(small(ONE), 7, seed=2)
    load_initial(same, str(tmp_path / "w.safetensors"))
    position = old.state_dict()["pos_embed"]
    assert torch.equal(same.state_dict()["pos_embed"], position[:, [0, 2, 3, 4, 5]])


@pytest.mark.slow
@pytest.mark.parametrize("name", [ONE, TWO, LS, "resnet10t", "convnext_atto", "tf_efficientnet_lite0", "levit_128s"])
def test_weights_without_a_classifier_are_a_start_with_a_fresh_one(tmp_path: Path, name: str) -> None:
    """Only the classifier may be missing, and in an evaluation not even that."""
    recipe = replace(recipe_for(name), image_size=64)
    old, new = make_student(recipe, 5, seed=1), make_student(recipe, 5, seed=2)
    classifier = old.pretrained_cfg["classifier"]
    heads_of = (classifier,) if isinstance(classifier, str) else classifier
    gone = {f"{head}.{leaf}" for head in heads_of for leaf in ("weight", "bias")} & set(old.state_dict())
    assert gone
    backbone = {key: value for key, value in old.state_dict().items() if key not in gone}
    save_file(backbone, tmp_path / "w.safetensors")
    report = load_initial(new, str(tmp_path / "w.safetensors"))
    assert set(report.fresh) == gone and report.words.endswith("begin at zero")
    assert all(torch.equal(new.state_dict()[key], value) for key, value in backbone.items())
    with pytest.raises(RunError, match="missing"):
        load_weights(new, tmp_path / "w.safetensors")
    lost = next(key for key, value in backbone.items() if value.is_floating_point())
    save_file({key: value for key, value in backbone.items() if key != lost}, tmp_path / "less.safetensors")
    with pytest.raises(RunError, match=lost):
        load_initial(new, str(tmp_path / "less.safetensors"))


@pytest.mark.parametrize(("of", "into"), [(ONE, TWO), (TWO, ONE)])
def test_weights_with_and_without_a_distillation_token_are_told_apart(tmp_path: Path, of: str, into: str) -> None:
    """The message names the model that the file is of, its own size, and no shape that no file has."""
    save_file(make_student(small(of), 5, seed=0).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(RunError, match=f"weights of {of} at 32 px") as refused:
        load_weights(make_student(small(into, image_size=64), 5, seed=0), tmp_path / "w.safetensors")
    assert f"give --model {of}" in str(refused.value) and "(1," not in str(refused.value)
    assert len(str(refused.value)) <= 600


def test_what_the_weights_of_other_sizes_and_kinds_become_is_said_or_refused(tmp_path: Path) -> None:
    """Every pair of (grid, patch, kind): loaded as it is, resized and said, or one sentence."""
    said = {}
    for of in (ONE, TWO, LS):
        for grid, patch in (((2, 2), 16), ((3, 3), 16), ((14, 13), 16), ((3, 2), 16), ((2, 2), 8)):
            size = (grid[0] * patch, grid[1] * patch)
            name = "vit_tiny_patch16_224" if of == LS else of
            extra = {"no_embed_class": True, "init_values": 1e-6} if of == LS else {}
            state = timm.create_model(name, num_classes=5, img_size=size, patch_size=patch, **extra).state_dict()
            path = tmp_path / f"{of}-{grid}-{patch}.safetensors"
            save_file(state, path)
            for into in (ONE, TWO, LS):
                model = make_student(small(into), 5, seed=0)
                try:
                    words = load_weights(model, path).words
                except RunError as error:
                    words = f"refused: {error}"
                    assert len(words) <= 620 and str(path) in words
                said[of, grid, patch, into] = words
    for of in (ONE, TWO, LS):
        assert said[of, (2, 2), 16, of] == ""
        assert "pos_embed is resized from" in said[of, (3, 3), 16, of]
        assert "no square grid" in said[of, (14, 13), 16, of] and "no square grid" in said[of, (3, 2), 16, of]
        assert "patch_embed.proj.weight is resized from (192, 3, 8, 8) to (192, 3, 16, 16)" in said[of, (2, 2), 8, of]
        others = [words for (a, _, _, b), words in said.items() if a == of != b]
        assert all(words.startswith("refused") for words in others), "a file of another kind"


def test_bf16_autocast_trains_with_float32_losses() -> None:
    """On CPU, autocast leaves log_softmax in bf16 unless the loss casts."""
    recipe = small()
    model = make_student(recipe, 5, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        answer = heads(model, images(7))
    assert answer.cls_BC.dtype == torch.bfloat16
    loss = student_loss(answer, Labels.of(torch.tensor([0, 1])), TeacherAnswer(torch.tensor([1, 1])), recipe)
    assert {part.dtype for part in loss} == {torch.float32}
    loss.total.backward()


def test_timm_still_returns_tuples_only_when_told() -> None:
    """The trap this file guards against; if timm changes, `set_distilled` can go."""
    model = timm.create_model(TWO, img_size=32, num_classes=5).train()
    assert isinstance(model(images(8)), torch.Tensor)


@pytest.mark.parametrize(
    ("model", "layout"),
    [("resnet18", torch.channels_last), ("deit_tiny_distilled_patch16_224", None), ("deit3_small_patch16_224", None)],
)
def test_cnns_are_channels_last(model: str, layout: torch.memory_format | None) -> None:
    assert fastest_layout(make_student(StudentRecipe(model=model), 5, seed=0, device="meta")) == layout
