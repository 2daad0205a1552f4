"""Weights of a network as a plain mapping of tensors: files read without running code, and a digest."""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from shards.errors import ArtefactError
from shards.names import short
from teacher_cache.network.weights_metadata import weights_file

_RAW = ("state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema", "ema")
"""Where training checkpoints keep their weights: timm, the DeiT authors and torchvision's references."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel, torch.compile and averaged models put before each name."""


class WeightsFile(NamedTuple):
    """The tensors of a weights file, by name.

    Attributes:
        path: where they were read from.
        state: the tensors under the network's own names.
        chosen: which of several sets they are, in words; "" where the file has one.
    """

    path: Path
    state: dict[str, Tensor]
    chosen: str


def read_weights(path: Path, *, averaged: bool = True) -> WeightsFile:
    """Read the tensors of a weights file without running any code in it.

    Args:
        path: safetensors, or a torch file that loads with `weights_only`, whatever its name ends in; or a folder of
            `export` or of a run. Training checkpoints of timm, of the DeiT authors and of torchvision's references are
            read as they are: the tensors under "state_dict" or "model", beside an `argparse.Namespace`. The prefixes
            of DistributedDataParallel and torch.compile are taken off.
        averaged: of a checkpoint that also has averaged weights (EMA) take these, as timm does.

    Errors:
        ArtefactError when the file is missing, is neither, or holds no tensors; naming the first tensor that holds
        NaN, infinity, or no plain real numbers.
    """
    path = weights_file(Path(path))
    if not path.is_file():
        raise ArtefactError(f"weights {path}: no such file; give a .safetensors or torch weights file")
    loaded, key, chosen = _chosen(_loaded(path), averaged)
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ArtefactError(f"weights {path}: expected a mapping of names to tensors{key}, got {_describe(loaded)}")
    state: dict[str, Tensor] = {}
    for name, tensor in loaded.items():
        _require_numbers(path, str(name), tensor)
        bare = _bare(str(name))
        if bare in state:
            raise ArtefactError(f"weights {path}: two tensors are called {short(bare)} without the prefix of training")
        state[bare] = tensor
    return WeightsFile(path, state, chosen)


def _loaded(path: Path) -> Any:
    """What a file holds: tensors, numbers, texts, containers of these, and `argparse.Namespace`.

    ArtefactError naming the class of anything else.
    """
    torch.serialization.add_safe_globals([argparse.Namespace])  # of plain attributes; nothing of it is called
    try:
        if _is_safetensors(path):
            return load_file(path)
        with path.open("rb") as file:  # of a path torch would look at the name's ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the parser of a damaged pickle fails with whatever it stumbles on
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ArtefactError(
                f"weights {path}: holds {short(found[1])} beside its tensors, which only running code could read: it "
                "is refused; where you trust its author, write its tensors alone with torch.save"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtefactError(
            f"weights {path}: cannot be read as safetensors or as a weights-only torch file: {short(reason, 150)}; "
            "files that hold pickled code are refused: save the state dict alone"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether the content is safetensors: a length and a JSON object; by the name where it is neither kind."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or (path.suffix == ".safetensors" and head[:2] not in (b"PK", b"\x80\x02"))


def _chosen(loaded: Any, averaged: bool) -> tuple[Any, str, str]:
    """The set of tensors to take from a file; where it stands, and which of several it is, in words."""
    if not isinstance(loaded, Mapping):
        return loaded, "", ""
    sets = [name for name in (*_AVERAGED, *_RAW) if isinstance(loaded.get(name), Mapping)]
    if not sets:
        return loaded, "", ""
    raw = [name for name in sets if name in _RAW]
    name = raw[0] if raw and not averaged else sets[0]
    tensors = {key: value for key, value in loaded[name].items() if name in _RAW or key != "n_averaged"}
    if len(sets) == len(raw):
        return tensors, f" under {name!r}", ""
    which = "the averaged weights (EMA)" if name in _AVERAGED else "the weights without averaging"
    others = [repr(other) for other in (raw if name in _AVERAGED else sets) if other != name]
    return tensors, f" under {name!r}", f"{which} under {name!r}" + (f", not {', '.join(others)}" if others else "")


def _bare(name: str) -> str:
    """The name of a tensor without the prefixes of training, in whatever order they stand."""
    while prefix := next((one for one in _PREFIXES if name.startswith(one)), ""):
        name = name.removeprefix(prefix)
    return name


def _require_numbers(path: Path, name: str, tensor: Tensor) -> None:
    """ArtefactError, naming the tensor, unless it holds plain finite numbers."""
    if tensor.is_complex() or tensor.is_quantized or tensor.layout is not torch.strided:
        kind = f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
        raise ArtefactError(
            f"weights {path}: tensor {name}: expected plain real numbers, got {kind}; save it as float32"
        )
    if tensor.is_floating_point() and not (finite := torch.isfinite(tensor.float())).all():
        count = tensor.numel() - int(finite.sum())
        raise ArtefactError(
            f"weights {path}: tensor {name}: {count} of {tensor.numel()} numbers are NaN or infinite; the training has "
            "diverged or the file is damaged: give weights of an earlier checkpoint"
        )


def write_weights(file: BinaryIO, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors; the same tensors and metadata give the same bytes in every process.

    safetensors itself writes its metadata in the order of a hash map that every process seeds anew.
    """
    data = save(dict(state), dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.write(memoryview(data)[end:])


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of a state dict: name, dtype, shape and little-endian bytes of each tensor, in order of name.

    It is taken of the network after loading, so one set of weights has one digest whatever file format, order, memory
    format or device it came from.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        # A flat uint8 view serves every dtype, bfloat16 included, which numpy does not have.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return type(loaded).__name__
    if nested := [str(name) for name, value in loaded.items() if isinstance(value, Mapping)]:
        return f"mappings under {short(', '.join(nested), 100)}; save the one to use alone"
    others = sorted({type(value).__name__ for value in loaded.values() if not isinstance(value, Tensor)})
    return f"a mapping with values of type {', '.join(others)}" if others else "an empty mapping"
