"""The optimiser of a recipe: decay groups, AdamW and LAMB, the gradient norm, the average of the weights.

LAMB: You et al., arXiv:1904.00962, timm's implementation with the recipe's clipping in place of its own.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim.lamb import Lamb
from torch import Tensor, nn

from student.learn.process_group import unwrapped
from student.recipe.student_recipe import StudentRecipe

_KERNELS = ("fused", "foreach", "capturable")
_Pair = tuple[Tensor, Tensor]


def decays(recipe: StudentRecipe, name: str, param: Tensor, spared: frozenset[str] = frozenset()) -> bool:
    """Whether the recipe's weight decay applies to a parameter.

    Args:
        name: the parameter's name in the bare model; spared: what the model itself lists (`no_weight_decay`).
    """
    if recipe.decay_groups == "all":
        return True
    if name.split(".")[-1] == "dist_token":
        return recipe.decay_dist_token
    return not (param.ndim <= 1 or name.endswith(".bias") or name in spared)


def param_groups(model: nn.Module, recipe: StudentRecipe) -> list[dict[str, Any]]:
    """The trained parameters in two groups, decayed and not, each in the model's order; empty groups are left out.

    Frozen parameters (`requires_grad` false) are in neither. ValueError when nothing is trained.
    """
    core = unwrapped(model)
    listed: Any = getattr(core, "no_weight_decay", set)
    spared = frozenset(listed())
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, param in core.named_parameters():
        if param.requires_grad:
            groups[decays(recipe, name, param, spared)].append(param)
    if not groups[True] and not groups[False]:
        raise ValueError("optimiser: the model has no parameter with requires_grad")
    return [
        {"params": params, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for decayed, params in groups.items()
        if params
    ]


def make_optimizer(model: nn.Module, recipe: StudentRecipe) -> torch.optim.Optimizer:
    """The recipe's optimiser at its scaled learning rate; the loop sets the rate of each step with `set_lr`.

    On GPUs AdamW launches one kernel a group, and timm's LAMB one a list of tensors (`foreach`, its own choice).
    """
    groups = param_groups(model, recipe)
    if recipe.optimizer == "adamw":
        # On a GPU one kernel for all parameters; on a CPU torch's own choice, whose bits older runs have.
        fused = {"fused": True} if groups[0]["params"][0].device.type == "cuda" else {}
        return torch.optim.AdamW(groups, lr=recipe.scaled_lr, betas=recipe.betas, eps=recipe.eps, **fused)
    # max_grad_norm would clip a second time; the recipe's clip_grad does it once, after the fp16 unscaling
    return Lamb(groups, lr=recipe.scaled_lr, betas=recipe.betas, eps=recipe.eps, max_grad_norm=None)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state, but keep this optimiser's own kernels: a run may have begun on another kind of device.

    Raises:
        ValueError: a state of other groups or parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    kernels = [{name: group[name] for name in _KERNELS if name in group} for group in own]
    groups = [{**group, **own_kernels} for group, own_kernels in zip(state["param_groups"], kernels, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for param, values in optimizer.state.items():
        for name, value in values.items():
            # A fused kernel wants moments in the layout of their parameter, which may be another here.
            if isinstance(value, Tensor) and value.shape == param.shape and value.stride() != param.stride():
                values[name] = torch.empty_like(param, dtype=value.dtype).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(params: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients to a global norm of at most `max_norm` (0: leave them); returns the norm before, float32."""
    if max_norm > 0:
        return nn.utils.clip_grad_norm_(list(params), max_norm)
    grads = [param.grad for param in params if param.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return norm


class Ema:
    """The exponential moving average of a model: average ← decay · average + (1 − decay) · weights, no warm-up."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the model's weights.

        Args:
            decay: per optimiser step, in (0, 1).
        """
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema_decay: expected a number in (0, 1), got {decay}")
        self.decay = decay
        # Parameters are left as the model's, requiring gradients: a compiled evaluation has one graph for both.
        self.model = copy.deepcopy(unwrapped(model)).eval()
        self._model: nn.Module | None = None
        self._pairs: tuple[list[_Pair], list[_Pair]] = ([], [])

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights; integer buffers are copied.

        Args:
            model: the same one in every step, whose tensors stay where they are: steps change them in place.
        """
        if self._model is not model:
            self._model, self._pairs = model, self._paired(model)
        floats, others = self._pairs
        torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], 1.0 - self.decay)
        for average, value in others:
            average.copy_(value)

    def _paired(self, model: nn.Module) -> tuple[list[_Pair], list[_Pair]]:
        """Return each average with its value, floating-point ones and others: once, as a state dict takes 1 ms."""
        values = unwrapped(model).state_dict().values()
        pairs = list(zip(self.model.state_dict().values(), values, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        return floats, [pair for pair in pairs if not pair[0].is_floating_point()]

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        state: dict[str, Tensor] = self.model.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from averaged weights; RuntimeError of torch when they are of another model."""
        self.model.load_state_dict(state, strict=True)
