"""Weights of a network as a plain mapping of tensors: files read without running code, and a digest."""

import argparse
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from shards.errors import ArtefactError, unreadable_now
from shards.names import short
from shards.signals import raise_interrupt
from teacher_cache.network.weights_metadata import require_whole, unpacked_bytes, weights_file

_RAW = ("state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema", "ema")
"""Where training checkpoints keep their weights: timm, the DeiT authors and torchvision's references."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel, torch.compile and averaged models put before each name."""

_SHOWN = 3

_DINO = {"teacher": True, "student": False}
"""Where DINO keeps its two networks, and whether it is the averaged one; their names begin with `backbone.`."""


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
            read as they are: the tensors under "state_dict" or "model", beside an `argparse.Namespace`; of DINO those
            under "teacher" (averaged) or "student". The prefixes of DistributedDataParallel and torch.compile are taken
            off; for those of other training code see `part_of_network`.
        averaged: of a checkpoint that also has averaged weights (EMA) take these, as timm does.

    Errors:
        ArtefactError when the file is missing, is neither, or holds no tensors; naming the first tensor that holds
        NaN, infinity, or no plain real numbers.
    """
    path = weights_file(Path(path))
    if not path.is_file():
        raise ArtefactError(f"weights {path}: no such file; give a .safetensors or torch weights file")
    loaded, key, words = _chosen(_loaded(path), averaged)
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ArtefactError(f"weights {path}: expected a mapping of names to tensors{key}, got {_describe(loaded)}")
    state: dict[str, Tensor] = {}
    room = unpacked_bytes(path)
    for name, tensor in loaded.items():
        _require_numbers(path, str(name), tensor, room)
        bare = _bare(str(name))
        if bare in state:
            raise ArtefactError(f"weights {path}: two tensors are called {short(bare)} without the prefix of training")
        state[bare] = tensor
    return WeightsFile(path, state, words)


def _loaded(path: Path) -> Any:
    """Load what a file holds: tensors, numbers, texts, containers of these, and `argparse.Namespace`.

    ArtefactError naming the class of anything else, or what a damaged file lacks.
    """
    require_whole(path)
    torch.serialization.add_safe_globals([argparse.Namespace])  # of plain attributes; nothing of it is called
    try:
        if _is_safetensors(path):
            return load_file(path)
        with path.open("rb") as file:  # of a path torch would look at the name's ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the parser of a damaged pickle fails with whatever it stumbles on
        raise_interrupt(error)
        if unreadable_now(error):
            raise
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ArtefactError(
                f"weights {path}: holds {short(match[1])} beside its tensors, which only running code could read: it "
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
    sets = [name for name in (*_AVERAGED, *_RAW) if isinstance(loaded.get(name), Mapping)] or _sets_of_dino(loaded)
    if not sets:
        return loaded, "", ""
    raw = [name for name in sets if name in _RAW or not _DINO.get(name, True)]
    name = raw[0] if raw and not averaged else sets[0]
    tensors = {key: value for key, value in loaded[name].items() if name in raw or key != "n_averaged"}
    if len(sets) == len(raw):
        return tensors, f" under {name!r}", ""
    which = "the weights without averaging" if name in raw else "the averaged weights (EMA)"
    others = [repr(other) for other in (sets if name in raw else raw) if other != name]
    return tensors, f" under {name!r}", f"{which} under {name!r}" + (f", not {', '.join(others)}" if others else "")


def _sets_of_dino(loaded: Mapping[Any, Any]) -> list[str]:
    """Find the networks of DINO in a file: their backbones have the same names; [] in all other files."""
    sets = [name for name in _DINO if isinstance(loaded.get(name), Mapping)]
    backbones = [{bare for key in loaded[name] if (bare := _bare(str(key))).startswith("backbone.")} for name in sets]
    return sets if sets and all(names and names == backbones[0] for names in backbones) else []


def part_of_network(
    state: dict[str, Tensor], own_names: Collection[str], where: str, *, optional: Collection[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """Take the tensors of one network out of those of a training module that holds it (Lightning, DINO).

    Args:
        state: the tensors of a file, by name. own_names: the names of the network's tensors.
        where: what messages call the file. optional: names that the file may lack, such as the classifier's.

    Returns:
        the tensors under the one prefix beneath which every name of the network stands, and what was taken in words;
        the state as it is and "" where it has the names itself, or no such prefix.

    Errors:
        ArtefactError when several prefixes have all names of the network.
    """
    needed = set(own_names) - set(optional)
    if not needed or needed <= state.keys():
        return state, ""
    one = max(needed, key=len)
    prefixes = sorted(name.removesuffix(one) for name in state if name.endswith(f".{one}"))
    fits = [prefix for prefix in prefixes if all(prefix + name in state for name in needed)]
    if not fits:
        return state, ""
    if len(fits) > 1:
        raise ArtefactError(
            f"weights {where}: the network stands in the file {len(fits)} times, under "
            f"{short(' and '.join(map(repr, fits)), 150)}; write the tensors of one with torch.save, and give that file"
        )
    others = [name for name in state if not name.startswith(fits[0])]
    left_out = f", without {len(others)} others ({short(', '.join(others[:3]), 120)})" if others else ""
    taken = {name.removeprefix(fits[0]): tensor for name, tensor in state.items() if name.startswith(fits[0])}
    return taken, f"the tensors under {fits[0]!r}{left_out}"


def misfit_words(*, missing: Collection[str], unknown: Collection[str], wrong: Collection[str]) -> str:
    """Say how many tensors a file lacks, has too many or has in another shape, with the first of each; "" for none."""
    return "; ".join(
        f"{len(names)} {what} ({', '.join(sorted(names)[:_SHOWN])}{' …' * (len(names) > _SHOWN)})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
        if names
    )


def _bare(name: str) -> str:
    """The name of a tensor without the prefixes of training, in whatever order they stand."""
    while prefix := next((one for one in _PREFIXES if name.startswith(one)), ""):
        name = name.removeprefix(prefix)
    return name


def _require_numbers(path: Path, name: str, tensor: Tensor, room: int) -> None:
    """ArtefactError, naming the tensor, unless it holds plain finite numbers in at most `room` bytes.

    A torch file may say of one number that it is a million by a million of them.
    """
    plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested)
    if tensor.is_complex() or tensor.is_quantized or not plain:
        kind = f"{tensor.dtype}, {tensor.layout}".replace("torch.", "") + ", without values" * tensor.is_meta
        raise ArtefactError(
            f"weights {path}: tensor {name}: expected plain real numbers, got {kind}; save it as float32"
        )
    if (num_bytes := tensor.numel() * tensor.element_size()) > room:
        raise ArtefactError(
            f"weights {path}: tensor {name}: expected at most {room} bytes, as the file has, got {num_bytes}: its rows "
            "are the same numbers again and again; give another file, or save the tensor with .contiguous()"
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
