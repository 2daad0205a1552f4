"""The teacher: any classifier with fixed weights, fed with normalised views, answering with float32 logits.

Both stages use this class: stage 1 fills the cache from it, and a student that trains with the teacher in the loop
calls the same `logits` on the same tensors. The network is timm's (`timm_network`) or the user's own (`own_network`).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shards.errors import ArtefactError
from shards.text.figures import count
from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD
from teacher_cache.network.arithmetic import arithmetic, autocast, faster_channels_last, is_half, require_deterministic
from teacher_cache.network.classifier import Classifier, Rgb, run_in_float32
from teacher_cache.network.own_network import own_errors, own_network
from teacher_cache.network.teacher_name import DEFAULT_TEACHER, is_own, spec_name, split_name
from teacher_cache.network.timm_network import timm_network
from teacher_cache.network.trial import require_logits
from teacher_cache.network.weights import WeightsFile, read_weights, weights_sha256
from teacher_cache.network.weights_metadata import BEST_WEIGHTS, trained_as, weights_file
from teacher_cache.store.spec import TeacherSpec

# B batch, C classes (image_BCHW: channels), H, W view.


class Teacher:
    """A frozen classifier; always in eval mode.

    Attributes:
        spec: name, weights, precision and input of the teacher, as the cache keeps them.
        num_classes: C.
        device: where it runs.
        num_forwards: calls of `logits` so far.
        deterministic: on a GPU it gives the same bits at every run, slower (`require_deterministic`); False at first.
        chosen: which of several sets of weights in its file it has, in words; "" where there was no choice.
        part: which tensors of its file they are where a training module held them, in words; "" where all.
        class_lists: the names of its classes in the order of its answers, in each naming that is known; () where none.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: TeacherSpec,
        *,
        device: torch.device,
        compiled: bool = False,
        channels_last: bool = True,
        chosen_set: str = "",
        part: str = "",
        class_lists: Sequence[Sequence[str]] = (),
    ) -> None:
        """Take a network that maps normalised views to logits; see `load_teacher`.

        ValueError where there are not as many names as classes.
        """
        for names in class_lists:
            if len(names) != spec.num_classes:
                raise ValueError(
                    f"teacher: {spec.name} answers in {count(spec.num_classes, 'class')}, got {len(names)} class "
                    "names; give all of them in its order with --teacher-classes"
                )
        self.spec, self.num_classes, self.device, self.num_forwards = spec, spec.num_classes, device, 0
        self.chosen, self.part, self.class_lists = chosen_set, part, tuple(map(tuple, class_lists))
        self._order_C: Tensor | None = None
        self.deterministic = False
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # else pinning memory would open a context on the first GPU as well
        network = network.requires_grad_(False).eval().to(device)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        network = network.to(memory_format=self._layout)
        self._network: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False) if compiled else network

    def logits(self, image_BCHW: Tensor) -> Tensor:
        """The answer to a batch of prepared views.

        Args:
            image_BCHW: float32, normalised with the spec's mean and std, on the teacher's device.

        Returns:
            (B, C) float32. The classifier itself runs in float32 in every precision: bf16 logits tie and
            flip 0.5 % of the first classes.
        """
        self.num_forwards += 1
        image_BCHW = image_BCHW.contiguous(memory_format=self._layout)
        kind, precision = self.device.type, self.spec.precision
        # Kernels picked by timing are faster, and may be others at the next start.
        kernels = {"benchmark": not self.deterministic, "deterministic": self.deterministic}
        own = own_errors(self.spec.name, len(image_BCHW))
        with torch.inference_mode(), arithmetic(kind, precision, **kernels), autocast(kind, precision), own:
            logit_BC: Tensor = self._network(image_BCHW)
            if self._order_C is not None:
                logit_BC = logit_BC.index_select(1, self._order_C)
            require_logits(logit_BC, self.num_classes, len(image_BCHW))
        return logit_BC.float()

    def in_order(self, class_order: Sequence[int]) -> "Teacher":
        """The same network, answering for some of its classes or in another order; it counts forwards of its own.

        Args:
            class_order: for each class of the answers its number in the network.
        """
        teacher = copy.copy(self)
        teacher.spec = replace(self.spec, num_classes=len(class_order), class_order=tuple(class_order))
        teacher.num_classes, teacher.num_forwards = len(class_order), 0
        teacher.class_lists = tuple(tuple(names[place] for place in class_order) for names in self.class_lists)
        teacher._order_C = torch.tensor(class_order, dtype=torch.int64, device=self.device)
        return teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOptions:
    """What most users of `load_teacher` leave alone.

    Attributes:
        view_mean, view_std: normalisation of the views, in [0, 1] units.
        model_mean, model_std: what the network was trained with; None takes timm's configuration of the tag, or the
            attributes `mean` and `std` of the user's network.
        class_names: of its classes, in its order; empty takes those that the weights file, the network or timm knows.
        averaged: of a training checkpoint that also has averaged weights (EMA) take these, as timm does.
        pretrained: False leaves the weights random (seeded by torch): for tests and benchmarks.
        compile: through torch.compile.
        deterministic: on a GPU the same bits at every run, slower: nothing is picked by timing.
    """

    view_mean: Rgb = IMAGENET_MEAN
    view_std: Rgb = IMAGENET_STD
    model_mean: Rgb | None = None
    model_std: Rgb | None = None
    class_names: Sequence[str] = ()
    averaged: bool = True
    pretrained: bool = True
    compile: bool = False
    deterministic: bool = False


def load_teacher(
    name: str = DEFAULT_TEACHER,
    *,
    weights: Path | None = None,
    num_classes: int | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    input_size: int = 224,
    model_kwargs: Mapping[str, Any] | None = None,
    options: TeacherOptions | None = None,
) -> Teacher:
    """Build a teacher and load its weights.

    Views are normalised with the recipe's mean and std. A network that was trained with others gets a first layer that
    changes the one normalisation into the other, x·(view_std/model_std) + (view_mean − model_mean)/model_std; its two
    vectors then count as weights in the sha256.

    Args:
        name: a timm model with its tag, `efficientnet_lite0`, `hf-hub:USER/NAME` or `local-dir:PATH` as timm has them,
            or `package.module:function` of the user's own; each with keyword arguments as JSON behind it
            ('regnety_002{"stem_type": "3x3"}'), which is how the spec writes `model_kwargs`.
        weights: a safetensors or weights-only torch file, a run's folder or one of `export`; None takes timm's hub, the
            extra for `efficientnet_lite0`, or what the function returns.
        num_classes: C; None takes it from the weights, from the tag, or from an answer.
        precision: "fp32", "tf32", or "bf16" / "fp16" for autocast with a float32 classifier.
        input_size: side of the square views, pixels.
        model_kwargs: further arguments for `timm.create_model`, or for the function.
        options: normalisation, names of the classes, and how the network is loaded and run.

    Errors:
        ValueError naming what does not exist or does not fit; ArtefactError for a weights file that cannot be read.
    """
    options, device, (base, kwargs) = options or TeacherOptions(), torch.device(device), split_name(name)
    kwargs |= dict(model_kwargs or {})
    file = None if weights is None else read_weights(weights, averaged=options.averaged)
    if is_own(base):
        own = {"mean": options.model_mean, "std": options.model_std}
        model = own_network(base, kwargs, file, num_classes=num_classes, input_size=input_size, **own)
    else:
        arguments = {"pretrained": options.pretrained}
        model = timm_network(base, kwargs, file, num_classes=num_classes, input_size=input_size, **arguments)
    model = model._replace(mean=options.model_mean or model.mean, std=options.model_std or model.std)
    state = _state_of(model, base)
    _keep_logits_in_float32(model, base, precision)
    network = _for_views(model, state, options.view_mean, options.view_std)
    spec = TeacherSpec(
        name=spec_name(base, kwargs),
        weights_sha256=weights_sha256(state),
        precision=precision,
        input_size=input_size,
        num_classes=model.num_classes,
        mean=options.view_mean,
        std=options.view_std,
    )
    channels_last = model.channels_last
    if device.type == "cuda" and channels_last and not (options.compile or options.deterministic):
        channels_last = faster_channels_last(network.eval().to(device), input_size, precision, device)
    teacher = Teacher(
        network,
        spec,
        device=device,
        compiled=options.compile,
        channels_last=channels_last,
        chosen_set=file.chosen if file else "",
        part=model.part,
        class_lists=(options.class_names,) if options.class_names else _class_lists(model, file),
    )
    teacher.deterministic = options.deterministic
    if teacher.deterministic and device.type == "cuda":
        require_deterministic()
    return teacher


def weights_of_cache(run: Path, spec: TeacherSpec) -> Path:
    """Return the file of a teacher's run, last or best epoch, that the answers of a cache are from.

    Returns: the folder, which stands for the last epoch, where no file that can be read has the digest of the spec.
    """
    for name in (BEST_WEIGHTS, ""):
        with suppress(ArtefactError):  # a missing or damaged file is not the one that the answers are from
            file = weights_file(run / name)
            if (known := trained_as(file)) is None:
                continue
            state = read_weights(file).state
            if (known.mean, known.std) != (tuple(spec.mean), tuple(spec.std)):
                state |= _in_state(_Renormalise(spec.mean, spec.std, known.mean, known.std))
            if weights_sha256(state) == spec.weights_sha256:
                return file
    return run


def _for_views(classifier: Classifier, state: dict[str, Tensor], view_mean: Rgb, view_std: Rgb) -> nn.Module:
    """The network, behind a layer that changes the normalisation where it wants another; its tensors go into state."""
    if (tuple(classifier.mean), tuple(classifier.std)) == (tuple(view_mean), tuple(view_std)):
        return classifier.network
    first = _Renormalise(view_mean, view_std, classifier.mean, classifier.std)
    state |= _in_state(first)
    return nn.Sequential(first, classifier.network)


def _in_state(first: nn.Module) -> dict[str, Tensor]:
    """The tensors of the layer that changes the normalisation, as they count in the digest."""
    return {f"view_normalisation.{name}": tensor for name, tensor in first.state_dict().items()}


def _class_lists(classifier: Classifier, file: WeightsFile | None) -> Sequence[Sequence[str]]:
    """The names of the classes that a file of ours says, or what builds the network."""
    known = trained_as(file.path) if file else None
    return (known.class_names,) if known and known.class_names else classifier.class_lists


def _state_of(classifier: Classifier, name: str) -> dict[str, Tensor]:
    """The tensors that tell this teacher from others of its name; ValueError for none, or a std of zero."""
    if min(classifier.std) <= 0:
        raise ValueError(f"teacher: std expected positive numbers, got {classifier.std}")
    state: dict[str, Tensor] = classifier.network.state_dict()
    if not any(tensor.numel() for tensor in state.values()):
        raise ValueError(
            f"teacher: {name} has no tensors, so its cache could not tell it from another network of this name; let "
            'the function register the bytes of its file: network.register_buffer("file", '
            "torch.frombuffer(bytearray(Path(FILE).read_bytes()), dtype=torch.uint8))"
        )
    return state


class _Renormalise(nn.Module):
    """From the views' normalisation to the network's own."""

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(self, view_mean: Rgb, view_std: Rgb, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        own_C, own_mean_C = torch.tensor(std, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
        scale_C = torch.tensor(view_std, dtype=torch.float64) / own_C
        shift_C = (torch.tensor(view_mean, dtype=torch.float64) - own_mean_C) / own_C
        self.register_buffer("scale_C11", scale_C.float().view(-1, 1, 1))
        self.register_buffer("shift_C11", shift_C.float().view(-1, 1, 1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW * self.scale_C11 + self.shift_C11


def _keep_logits_in_float32(classifier: Classifier, name: str, precision: str) -> None:
    """Run the last layer in float32; ValueError where autocast would reach the logits."""
    if classifier.head:
        run_in_float32(classifier.network, classifier.head)
    elif is_half(precision):
        raise ValueError(
            f"teacher: {name}: no layer with weights gives the logits as they are, so in {precision} they would be "
            "rounded and tie; give --precision fp32, or let the network end in its classifier"
        )
