"""A generator of damage: documents of every kind taken apart, changed anywhere, sealed again and put back.

Sealed again, because checksums are no protection from who wrote the file: a stranger's index, cache or run has
checksums that fit. What a document then does to a command is the test: it goes on or says what is wrong, where,
expected, got and what next; it never ends in a traceback, asks for memory it cannot have, or waits.
"""

import copy
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from teacher_cache.store.header import _attributes_digest

_INFO = "deit_teacher_cache"


def obeyed(text: str) -> list[str]:
    """What a terminal would obey."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t"]


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: list[Any] = [
    *(None, True, False, "", "x", "../x", "/etc/passwd", "http://127.0.0.1:9/x", "\0", "é" * 40, 0, 1, -1, 2, 3),
    *(10**12, 2**31, 2**63, 2**64, 10**30, -(10**12), 0.5, -0.5, 1e300, -1e300, [], {}, [[]], [None], {"x": 1}),
    *([1, 2, 3], ["a", "b"], [0.5] * 4, _nested(30), _nested(400), "9" * 400, "|O", "<f8", "nan", "inf"),
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed: every place in a JSON value, the whole first."""
    found = [at]
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*at, key))
    return found


def _put(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None], new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    change(parent, path[-1])
    return value


def damaged(value: Any, rng: Random) -> Any:
    """The value with one to three changes: another value, a missing part, a part more, a part twice."""
    for _ in range(rng.randint(1, 3)):
        path, new = rng.choice(paths(value)), rng.choice(HOSTILE)
        kind = rng.choice(["replace", "replace", "replace", "remove", "add", "repeat"])

        def change(parent: Any, key: Any, kind: str = kind, new: Any = new) -> None:
            if kind == "remove":
                del parent[key]
            elif kind == "add" and isinstance(parent, dict):
                parent[f"{key}_of_tomorrow"] = new
            elif kind == "repeat":
                parent[key] = [parent[key]] * 3
            else:
                parent[key] = new

        value = _put(value, path, change, new)
    return value


@dataclass(frozen=True)
class Document:
    """A kind of file: where it lies in the set, how it is taken apart and sealed, and the commands that read it."""

    path: str
    load: Callable[[bytes, Path], Any]
    seal: Callable[[Any, bytes, Path], bytes]
    commands: tuple[tuple[str, ...], ...]


def _json(data: bytes, _: Path) -> Any:
    return json.loads(data)


def _json_bytes(value: Any, *_: Any) -> bytes:
    return json.dumps(value).encode()


def _lines(data: bytes, _: Path) -> Any:
    return [json.loads(line) for line in data.splitlines()]


def _lines_bytes(value: Any, *_: Any) -> bytes:
    lines = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _index_head(data: bytes, _: Path) -> Any:
    return json.loads(data[24 : 24 + int.from_bytes(data[16:20], "little")])


def _index_bytes(value: Any, data: bytes, _: Path) -> bytes:
    arrays = data[24 + int.from_bytes(data[16:20], "little") :]
    head = json.dumps(value).encode()
    head += b" " * (-(24 + len(head)) % 64)
    checksum: int = google_crc32c.value(head)
    return data[:16] + len(head).to_bytes(4, "little") + checksum.to_bytes(4, "little") + head + arrays


def _root_bytes(value: Any, *_: Any) -> bytes:
    """The root of a cache with the digest of its attributes as it must be."""
    if isinstance(value, dict) and isinstance(value.get("attributes"), dict):
        stored = {name: inner for name, inner in value["attributes"].items() if name != "attributes_digest"}
        value = {**value, "attributes": {**stored, "attributes_digest": _attributes_digest(stored)}}
    return json.dumps(value).encode()


def _weights_info(_: bytes, path: Path) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[_INFO])


def _weights_bytes(value: Any, _: bytes, path: Path) -> bytes:
    save_file(load_file(path), path, {_INFO: json.dumps(value)})
    return path.read_bytes()


DOCUMENTS = {
    "index": Document("train/shards.index", _index_head, _index_bytes, (("check-shards", "train"),)),
    "cache root": Document(
        "lowrank.zarr/zarr.json",
        _json,
        _root_bytes,
        (("cache-status", "lowrank.zarr", "--fidelity", "--json"), ("verify-cache", "lowrank.zarr")),
    ),
    "array metadata": Document("dense.zarr/logit/zarr.json", _json, _json_bytes, (("verify-cache", "dense.zarr"),)),
    "basis metadata": Document(
        "lowrank.zarr/tail_basis/mean_C/zarr.json", _json, _json_bytes, (("verify-cache", "lowrank.zarr"),)
    ),
    "run configuration": Document("run/config.json", _json, _json_bytes, (("report", "run", "sweep/cells/none-s0"),)),
    "run summary": Document("run/summary.json", _json, _json_bytes, (("report", "run", "--csv", "x.csv"),)),
    "metrics": Document("run/metrics.jsonl", _lines, _lines_bytes, (("report", "run"),)),
    "sweep": Document("sweep/sweep.json", _json, _json_bytes, (("report", "sweep"),)),
    "cell status": Document("sweep/status/none-s0.json", _json, _json_bytes, (("report", "sweep"),)),
    "weights": Document(
        "run/weights.safetensors",
        _weights_info,
        _weights_bytes,
        (("predict", "--weights", "run/weights.safetensors", "image.png"),),
    ),
}
