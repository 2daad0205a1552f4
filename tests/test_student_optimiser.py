"""Schedules against the published ones, decay groups against timm's, the optimisers, clipping, the weight average."""

import copy
import itertools
import math
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student.learn.learning_rate import lr_at
from student.learn.network import make_student
from student.learn.optimiser import Ema, clip_gradients, load_optimizer, make_optimizer, param_groups, set_lr
from student.recipe.papers import STUDENT_RECIPES
from student.recipe.student_recipe import StudentRecipe

LONG = sorted(name for name, recipe in STUDENT_RECIPES.items() if recipe.epochs >= 300)


def tiny(model: str = "deit_tiny_distilled_patch16_224", **changes: object) -> tuple[nn.Module, StudentRecipe]:
    """A real DeiT-Ti on two by two patches."""
    recipe = StudentRecipe(model=model, image_size=32, distill="hard", **changes)  # type: ignore[arg-type]
    return make_student(recipe, 5, seed=0), recipe


@pytest.mark.parametrize("name", sorted(STUDENT_RECIPES))
@pytest.mark.parametrize("lag", [False, True])
def test_a_run_follows_timms_scheduler_epoch_by_epoch(name: str, lag: bool) -> None:
    """All 300 or 800 epochs; with `lr_lag` stepped as the authors do: at the end of an epoch, with its index."""
    recipe = replace(STUDENT_RECIPES[name], schedule_unit="epoch", lr_lag=lag)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.scaled_lr)
    scheduler = CosineLRScheduler(
        optimizer,
        recipe.epochs,
        lr_min=recipe.min_lr,
        warmup_t=int(recipe.warmup_epochs),
        warmup_lr_init=recipe.warmup_lr,
    )
    for epoch in range(recipe.epochs):
        if not lag:
            scheduler.step(epoch)
        assert lr_at(recipe, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        if lag:
            scheduler.step(epoch)


def test_the_lagging_schedule_of_deit_has_the_published_ends() -> None:
    """Epochs 0 and 1 both run at 1e-6, the last of 300 at 1.011e-5."""
    recipe = replace(STUDENT_RECIPES["deit"], lr_lag=True)
    assert (lr_at(recipe, 0), lr_at(recipe, 1)) == (1e-6, 1e-6)
    assert f"{lr_at(recipe, 299):.3e}" == "1.011e-05"


def test_the_default_schedule_of_deit() -> None:
    """1e-6 rises in fifths to the cosine of the whole run at epoch 5; there is no cool-down."""
    recipe = STUDENT_RECIPES["deit"]
    assert [lr_at(recipe, e) for e in range(3)] == pytest.approx([1e-6, 1e-6 + 999e-6 / 5, 1e-6 + 2 * 999e-6 / 5])
    assert lr_at(recipe, 5) == pytest.approx(1e-5 + 0.5 * 99e-5 * (1 + math.cos(math.pi * 5 / 300)))
    assert lr_at(recipe, 299) == pytest.approx(1.0027e-5, rel=1e-4)


@pytest.mark.parametrize("name", LONG)
def test_a_schedule_per_step_passes_through_the_schedule_per_epoch(name: str) -> None:
    """The first step of an epoch has the epoch's rate; the warm-up rises and the cosine falls at every step."""
    recipe = STUDENT_RECIPES[name]
    stepped = replace(recipe, schedule_unit="step")
    rates = [lr_at(stepped, epoch, step, 3) for epoch in range(recipe.epochs) for step in range(3)]
    assert rates[::3] == [lr_at(recipe, epoch) for epoch in range(recipe.epochs)]
    turn = 3 * int(recipe.warmup_epochs)
    assert all(a < b for a, b in itertools.pairwise(rates[:turn]))
    assert all(a > b for a, b in itertools.pairwise(rates[turn:]))
    assert max(rates) <= recipe.scaled_lr


def test_a_constant_schedule_stays_at_the_scaled_rate() -> None:
    """After the warm-up nothing falls."""
    recipe = StudentRecipe(schedule="constant")
    assert {lr_at(recipe, epoch) for epoch in range(5, 300)} == {recipe.scaled_lr}


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (300, 0), (0, 4), (0, -1)])
def test_a_step_outside_the_run_has_no_rate(epoch: int, step: int) -> None:
    """A loop that runs over is a bug, not a cosine that rises again."""
    with pytest.raises(ValueError, match="expected epoch in"):
        lr_at(StudentRecipe(), epoch, step, 4)


def decayed_names(model: nn.Module, recipe: StudentRecipe) -> set[str]:
    """Names of the parameters with weight decay."""
    ids = {id(p) for group in param_groups(model, recipe) if group["weight_decay"] > 0 for p in group["params"]}
    return {name for name, param in model.named_parameters() if id(param) in ids}


def test_only_matrices_decay_and_dist_token_by_name() -> None:
    """No decay on 1-D parameters, biases, pos_embed and cls_token; the authors' code decays dist_token."""
    model, recipe = tiny()
    names = decayed_names(model, recipe)
    assert {n for n, p in model.named_parameters() if p.ndim > 1} - names == {"cls_token", "dist_token", "pos_embed"}
    assert all(name.endswith(".weight") for name in names)
    assert decayed_names(model, replace(recipe, decay_dist_token=True)) == names | {"dist_token"}
    everything = decayed_names(model, replace(recipe, decay_groups="all"))
    assert everything == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("model_name", ["deit_tiny_distilled_patch16_224", "deit3_tiny_patch16_224"])
def test_default_groups_are_timms(model_name: str) -> None:
    """timm's own factory, which exempts dist_token."""
    model, recipe = tiny(model_name)
    theirs = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=recipe.weight_decay)
    ids = {id(p) for group in theirs.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    assert decayed_names(model, recipe) == {name for name, p in model.named_parameters() if id(p) in ids}


def test_groups_partition_what_is_trained() -> None:
    """Every parameter once; frozen ones never; nothing trained is an error."""
    model, recipe = tiny()
    model.patch_embed.requires_grad_(False)
    grouped = [p for group in param_groups(model, recipe) for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, grouped)) == sorted(map(id, trained))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        param_groups(model, recipe)


def quadratic_step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    """One step on ½ Σ (p − 1)²."""
    optimizer.zero_grad()
    loss = sum(((p - 1) ** 2).sum() / 2 for p in params)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    optimizer.step()


class Launches(TorchDispatchMode):
    """Counts operations on tensors of the device, each of which is a kernel or more on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        self.count += any(tensor.device.type == "meta" for tensor in tensors)
        return func(*args, **(kwargs or {}))


def launches(optimizer: str, setting: dict[str, bool]) -> int:
    """Operations of the second step of a DeiT-Ti on the meta device, with the kernels of a GPU chosen as given."""
    recipe = StudentRecipe(optimizer=optimizer, distill="hard")  # type: ignore[arg-type]
    model = make_student(recipe, 1000, seed=0, device="meta")
    with mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["meta"]):
        stepper = make_optimizer(model, recipe)
        for group in stepper.param_groups:
            group |= setting
        for param in model.parameters():
            param.grad = torch.empty_like(param)
        stepper.step()
        with Launches() as counted:
            stepper.step()
    return counted.count


def test_the_step_of_an_optimiser_is_a_few_launches_on_a_gpu() -> None:
    """One by one AdamW launches more than a thousand for 157 parameters, and LAMB nearly two thousand."""
    assert launches("adamw", {"foreach": False}) > 1000 and launches("adamw", {"fused": True}) <= 4
    assert launches("lamb", {"foreach": False}) > 1800 and launches("lamb", {"foreach": True}) <= 40


def test_adamw_is_fused_where_the_parameters_are_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the choice stays torch's: golden runs have its bits."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: made.append(options))
    make_optimizer(small_net(), StudentRecipe())
    on_gpu = mock.Mock(device=torch.device("cuda", 0), requires_grad=True, ndim=2)
    net = mock.Mock(spec=nn.Module, named_parameters=lambda: [("weight", on_gpu)])
    monkeypatch.setattr("student.learn.optimiser.unwrapped", lambda model: model)
    make_optimizer(net, StudentRecipe())
    assert "fused" not in made[0] and made[1]["fused"] is True


def small_net() -> nn.Sequential:
    """A matrix and a bias that start away from the optimum."""
    net = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(6.0).view(2, 3) - 2)
        net[0].bias.copy_(torch.tensor([3.0, -3.0]))
    return net


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_first_step_is_the_papers_formula(optimizer: str) -> None:
    """AdamW: p ← p − η(sign-like update) − ηλp. LAMB: the update, decay added, scaled to the norm of the weights.

    After one step the bias-corrected moments are g and g², so the adaptive update is g / (|g| + ε).
    """
    recipe = StudentRecipe(optimizer=optimizer, lr=0.01, lr_scaling="none", weight_decay=0.1, eps=1e-8)  # type: ignore[arg-type]
    net = small_net()
    weight, bias = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    stepper = make_optimizer(net, recipe)
    quadratic_step(stepper, list(net.parameters()))
    # nobody but `clip_gradients` bounds the gradient: the first moment is a tenth of it, as it was
    torch.testing.assert_close(stepper.state[net[0].weight]["exp_avg"], 0.1 * (weight - 1))
    step_w, step_b = (weight - 1) / ((weight - 1).abs() + 1e-8), (bias - 1) / ((bias - 1).abs() + 1e-8)
    if optimizer == "adamw":
        expected_w, expected_b = weight * (1 - 0.01 * 0.1) - 0.01 * step_w, bias - 0.01 * step_b
    else:
        update = step_w + 0.1 * weight
        expected_w = weight - 0.01 * update * weight.norm() / update.norm()
        expected_b = bias - 0.01 * step_b  # not decayed, so not adapted (NVLAMB off), as in the authors' fused LAMB
    torch.testing.assert_close(net[0].weight.detach(), expected_w, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net[0].bias.detach(), expected_b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_resumed_optimiser_continues_to_the_bit(optimizer: str) -> None:
    """Law 10 rests on it: two steps, save, load into a fresh one, one more step."""
    recipe = StudentRecipe(optimizer=optimizer, lr=0.05, lr_scaling="none")  # type: ignore[arg-type]
    net = small_net()
    first = make_optimizer(net, recipe)
    for _ in range(2):
        quadratic_step(first, list(net.parameters()))
    twin = copy.deepcopy(net)
    second = make_optimizer(twin, recipe)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for net_, optimizer_ in ((net, first), (twin, second)):
        set_lr(optimizer_, 0.03)
        quadratic_step(optimizer_, list(net_.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert {group["lr"] for group in first.param_groups} == {0.03}


@pytest.mark.parametrize("began_on_gpu", [True, False])
def test_a_state_of_another_kind_of_device_goes_on_with_the_kernels_of_this_one(began_on_gpu: bool) -> None:
    """The same moments; fused or not is what this optimiser was made with. A CPU computes both to the same numbers."""
    recipe = StudentRecipe(lr=0.05, lr_scaling="none")
    nets = [small_net() for _ in range(2)]
    gpu, cpu = (make_optimizer(net, recipe) for net in nets)
    for group in gpu.param_groups:
        group["fused"] = True  # as on a GPU
    first, second, net, twin = (gpu, cpu, *nets) if began_on_gpu else (cpu, gpu, *reversed(nets))
    for _ in range(2):
        quadratic_step(first, list(net.parameters()))
    twin.load_state_dict(net.state_dict())
    load_optimizer(second, copy.deepcopy(first.state_dict()))
    assert all(group["fused"] is True for group in gpu.param_groups)
    assert not any(group["fused"] for group in cpu.param_groups)
    for optimizer, net_ in ((first, net), (second, twin)):
        quadratic_step(optimizer, list(net_.parameters()))
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError):
        load_optimizer(second, {**first.state_dict(), "param_groups": []})


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_moments_take_the_layout_of_the_parameters_that_load_them(optimizer: str) -> None:
    """CNNs are channels last on GPUs and not on CPUs, and a fused kernel refuses moments of another layout."""
    recipe = StudentRecipe(optimizer=optimizer, lr=0.05, lr_scaling="none")  # type: ignore[arg-type]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, second = make_optimizer(plain, recipe), make_optimizer(last, recipe)
    quadratic_step(first, list(plain.parameters()))
    load_optimizer(second, copy.deepcopy(first.state_dict()))
    moment, other = (stepper.state[net[0].weight]["exp_avg"] for stepper, net in ((first, plain), (second, last)))
    assert torch.equal(moment, other) and other.stride() == last[0].weight.stride() != moment.stride()


@pytest.mark.parametrize(("max_norm", "after"), [(1.0, 1.0), (100.0, 5.0), (0.0, 5.0)])
def test_clipping_bounds_the_global_norm_and_tells_it(max_norm: float, after: float) -> None:
    """Two gradients of norm 3 and 4 have a global norm of 5; 0 is off."""
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    params[0].grad, params[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(params, max_norm).item() == pytest.approx(5.0)
    assert sum(p.grad.square().item() for p in params if p.grad is not None) ** 0.5 == pytest.approx(after, rel=1e-5)


def test_the_weight_average_is_the_exponential_one() -> None:
    """average_n = d^n w_0 + (1 − d) Σ d^(n−1−i) w_(i+1), buffers of integers copied, and it survives a checkpoint."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    weights = [1.0, 5.0, -3.0, 2.0]
    nn.init.constant_(net[0].weight, weights[0])
    ema = Ema(net, 0.9)
    for i, weight in enumerate(weights[1:], start=1):
        nn.init.constant_(net[0].weight, weight)
        net[1].num_batches_tracked.fill_(i)
        ema.update(net)
    expected = 0.9**3 * 1.0 + 0.1 * (0.81 * 5.0 + 0.9 * -3.0 + 2.0)
    assert ema.model[0].weight.item() == pytest.approx(expected, rel=1e-6)
    assert ema.state_dict()["1.num_batches_tracked"].item() == 3
    assert not ema.model.training and not any(p.grad_fn for p in ema.model.parameters())
    other = Ema(net, 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.model[0].weight.item() == ema.model[0].weight.item()


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_an_average_that_never_moves_or_never_remembers_is_refused(decay: float) -> None:
    """0 means off and is the caller's to see."""
    with pytest.raises(ValueError, match="ema_decay"):
        Ema(nn.Linear(1, 1), decay)


def test_the_average_is_torchs_to_the_bit_once_both_have_begun() -> None:
    """PyTorch's AveragedModel copies the weights at its first update where ours, as the authors', averages at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    ours = Ema(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.n_averaged.fill_(1)
    for _ in range(5):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value))
        ours.update(model)
        theirs.update_parameters(model)
    pairs = zip(ours.model.parameters(), theirs.module.parameters(), strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)


def test_an_average_asks_for_no_state_dict_after_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a checkpoint was loaded: the tensors stay the same ones, and so do the bits of the average."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    ema, slow = Ema(net, 0.9), {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(4):
        for value in net.state_dict().values():
            value.add_(step + 1)
        with monkeypatch.context() as patch:
            if step:
                patch.setattr(nn.Module, "state_dict", None)
            ema.update(net)
        for name, value in net.state_dict().items():
            slow[name] = torch.lerp(slow[name], value, 0.1) if value.is_floating_point() else value.clone()
        assert all(torch.equal(value, slow[name]) for name, value in ema.state_dict().items())
        ema.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
        net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
