"""Read a model in the layout of timm and the Hugging Face hub: config.json beside weights, without importing torch.

`hf-hub:USER/NAME` and `local-dir:PATH` name such folders, as in `timm.create_model`. The configuration may come from a
stranger: of its arguments those are accepted that describe an architecture.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from shards.documents import read_document
from shards.errors import ArtefactError, system_words, unreadable_now
from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD
from teacher_cache.network.weights_metadata import require_architecture

_ADVICE = "expected the config.json that timm writes; or give --teacher ARCHITECTURE with --teacher-weights FILE"
_CHOSEN_HERE = ("num_classes", "img_size", "in_chans")
_Rgb = tuple[float, float, float]
_Count = Annotated[int, msgspec.Meta(ge=1, le=10**6)]


class _Pretrained(msgspec.Struct):
    """What of `pretrained_cfg` is used."""

    mean: _Rgb = IMAGENET_MEAN
    std: _Rgb = IMAGENET_STD
    num_classes: _Count | None = None


class _Config(msgspec.Struct):
    """What of config.json is used; further fields are of no concern here."""

    architecture: str
    pretrained_cfg: _Pretrained
    num_classes: _Count | None = None
    model_args: dict[str, Any] = {}
    label_names: list[str] | None = None


class ModelFolder(NamedTuple):
    """What a folder says of its model.

    Attributes:
        architecture: timm's name. arguments: for `timm.create_model`, beside those that the views decide.
        mean, std: of its images, in [0, 1] units. num_classes: C; None where it does not say.
        class_names: in the order of its answers; () where it does not say.
    """

    architecture: str
    arguments: dict[str, Any]
    mean: _Rgb
    std: _Rgb
    num_classes: int | None
    class_names: tuple[str, ...]


def read_model_folder(folder: Path) -> ModelFolder:
    """Read the config.json of a folder; ArtefactError naming what is missing, wrong or no part of an architecture."""
    path = folder / "config.json"
    try:
        config = read_document(path, _Config, error=ArtefactError, advice=_ADVICE)
    except OSError as error:
        if unreadable_now(error):
            raise ArtefactError(system_words(error, path)) from error
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from None
    arguments = {name: value for name, value in config.model_args.items() if name not in _CHOSEN_HERE}
    require_architecture(arguments, str(path), (), "take it out of the file if it is not needed")
    known = config.pretrained_cfg
    classes = config.num_classes or known.num_classes
    names = tuple(config.label_names or ())
    return ModelFolder(config.architecture, arguments, known.mean, known.std, classes, names)
