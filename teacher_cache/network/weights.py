"""Weights of a network as a plain mapping of tensors: files read without running code, and a digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from shards.errors import ArtefactError

_WRAPPERS = ("state_dict", "model")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a weights file, by name.

    Args:
        path: `.safetensors`, or a torch file that loads with `weights_only`; a checkpoint may hold them under
            "state_dict" or "model" (the layout of the published DeiT files). A "module." prefix of DDP is taken off.

    Errors:
        ArtefactError when the file is missing, is neither, or holds no tensors; naming the first tensor that holds
        NaN, infinity, or no plain real numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"weights {path}: no such file; give a .safetensors or torch weights file")
    try:
        loaded: Any
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the parser of a damaged pickle fails with whatever it stumbles on
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtefactError(
            f"weights {path}: cannot be read as safetensors or as a weights-only torch file: {reason}; "
            "files that hold pickled code are refused: save the state dict alone"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ArtefactError(f"weights {path}: expected a mapping of names to tensors, got {_describe(loaded)}")
    for name, tensor in loaded.items():
        _require_numbers(path, str(name), tensor)
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


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
    others = sorted({type(value).__name__ for value in loaded.values() if not isinstance(value, Tensor)})
    return f"a mapping with values of type {', '.join(others)}" if others else "an empty mapping"
