"""Kinds of trial for `tests.campaign` with what strangers and slips bring: arguments, names, files, servers, numbers.

Each takes a copy of the golden set (with pictures) and a source of chance, draws one case of its kind, and raises
`TrialError` where a command takes what it must refuse, or says nothing of what was wrong. What holds for every command
(no traceback, bounded memory, an end, nothing that a terminal obeys) is looked at by `campaign_process`.
"""

import json
import math
import os
import shutil
import stat
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from student import Feed, FeedOptions
from teacher_cache.network.weights_metadata import ARCHITECTURE, NOT_ARCHITECTURE
from tests.campaign_process import Ended, TrialError, command, forked, light
from tests.campaign_server import MOODS, MoodyServer
from tests.damage import DOCUMENTS, HOSTILE, obeyed, paths
from tests.golden.make import cache_command, student_command
from tests.object_servers import s3_variables

PREDICT = ["predict", "image.png", "--weights", "run/weights.safetensors"]
TRAIN = [*student_command(Path(), Path("new-run")), "--epochs", "1"]
CACHE = cache_command(Path(), "dense", cache=Path("new.zarr"))


def _require_refused(ended: Ended, what: str, *words: str, codes: tuple[int, ...] = (1, 2)) -> None:
    """`TrialError` unless it ended with one of the codes and says each of the words."""
    if ended.code not in codes:
        raise TrialError(f"silent: {what}: exit code {ended.code}: {ended.said[-300:]}")
    missing = [word for word in words if word not in ended.said]
    if missing:
        raise TrialError(f"unclear: {what}: without {missing}: {ended.said[-600:]}")


def arguments(folder: Path, rng: Random) -> None:
    """An argument for timm by flag, TOML file or weights: an architecture, or refused; never one of timm's own."""
    forbidden = rng.random() < 0.3
    name = rng.choice(sorted(NOT_ARCHITECTURE if forbidden else ARCHITECTURE))
    value = rng.choice([*HOSTILE, str(folder / "teacher.safetensors"), 3, 33, 0.1, [1, 1], 65_536, 10**9])
    way = rng.choice(["--set", "toml", "--teacher-arg", "weights"])
    text = json.dumps(value)
    if way == "weights":
        document = DOCUMENTS["weights"]
        path = folder / document.path
        whole = path.read_bytes()
        info = document.load(whole, path)
        info["recipe"]["model_args"] = {**dict(info["recipe"]["model_args"]), name: value}
        path.write_bytes(document.seal(info, whole, path))
        ended = light(PREDICT, folder)
    elif way == "toml":
        (folder / "s.toml").write_text(f"[model_args]\n{name} = {text}\n")
        ended = light([*TRAIN, "--config", "s.toml"], folder)
    elif way == "--set":
        ended = light([*TRAIN, "--set", f"model_args.{name}={text}"], folder)
    else:
        ended = light([*CACHE, "--teacher-arg", f"{name}={text}"], folder)
    if forbidden:
        _require_refused(ended, f"{way} {name}={text}")


OBEYED = ["\x1b]0;own\x07", "\x9b2J", "\u202e", "\r", "\udcff", "\u2028", "\U000e0041"]
PIECES = [
    *OBEYED,
    *("=1+1", "|", "`", "<b>", "\n", "日本語", "é", " ", "'", '"', "$(x)", "-x", "%s", "{0}", "[x](y)", "a", "#", "~"),
    *("$x$", "\\", "x" * 90),
]


def names(folder: Path, rng: Random) -> None:
    """Names of files, classes, outputs and strings in documents that a terminal, a page or a table would obey."""
    pieces = [rng.choice(OBEYED), *rng.choices(PIECES, k=rng.randint(0, 2))]
    evil = "".join(rng.sample(pieces, len(pieces)))
    way = rng.choice(["picture", "class", "class names", "out", "document"])
    if way == "picture":
        (folder / "image.png").rename(folder / f"{evil}.png")
        light(["predict", f"./{evil}.png", "--weights", "run/weights.safetensors"], folder)
    elif way == "class":
        (folder / "pictures/c0").rename(folder / "pictures" / evil)
        light(["make-shards", "pictures", f"./{evil}.s", "--workers", "0"], folder)
    elif way == "class names":
        path = folder / "run/weights.safetensors"
        with safe_open(path, "pt") as file:
            info = json.loads(file.metadata()["deit_teacher_cache"])
        info["class_names"] = [f"{evil}{n}" for n in range(info["num_classes"])]
        save_file(load_file(path), path, {"deit_teacher_cache": json.dumps(info)})
        light(PREDICT, folder)
        light(["export", "run/weights.safetensors", "out/model.safetensors"], folder)
    elif way == "out":
        light(["report", "run", "--html", f"{evil}.html", "--csv", f"{evil}.csv", "--png", f"{evil}.d"], folder)
        light(["copy-cache", "dense.zarr", f"{evil}.zarr", "--card"], folder)
    else:
        _rename_in_document(folder, evil, rng)
    for path in folder.rglob("*"):
        written = path.suffix in (".md", ".html", ".csv") and path.is_file()
        if written and obeyed(path.read_text(errors="replace")):
            raise TrialError(f"unclean: {way} {evil!r}: escapes in {path.name!r}")


def _rename_in_document(folder: Path, evil: str, rng: Random) -> None:
    """Put the name in place of a string or a key of a document; its commands may say anything that is not obeyed."""
    document = DOCUMENTS[rng.choice(list(DOCUMENTS))]
    path = folder / document.path
    whole = path.read_bytes()
    value = document.load(whole, path)
    places = [place for place in paths(value) if place]
    strings = [place for place in places if isinstance(_at(value, place), str)]
    place = rng.choice(strings or places)
    parent = _at(value, place[:-1])
    if rng.random() < 0.3 and isinstance(parent, dict):
        parent[evil] = parent.pop(place[-1])
    else:
        parent[place[-1]] = evil
    path.write_bytes(document.seal(value, whole, path))
    for words in document.commands:
        light(words, folder)


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        value = value[step]
    return value


SPECIAL: dict[str, tuple[list[str], ...]] = {
    "pictures/c0/0.png": (["make-shards", "pictures", "new-shards", "--workers", "0"],),
    "image.png": (PREDICT,),
    "train/shards.index": (["check-shards", "train"], TRAIN),
    "train/shard-000000.tar": (["check-shards", "train", "--workers", "0"], TRAIN),
    "dense.zarr/zarr.json": (["verify-cache", "dense.zarr"], ["cache-status", "dense.zarr"], TRAIN),
    "dense.zarr/ledger/c/0/0": (["verify-cache", "dense.zarr"], ["cache-status", "dense.zarr"], TRAIN),
    "dense.zarr/logit/c/0/0/0/0": (["verify-cache", "dense.zarr"], TRAIN),
    "dense.zarr/logit/zarr.json": (["verify-cache", "dense.zarr"], TRAIN),
    "run/weights.safetensors": (PREDICT, ["export", "run/weights.safetensors", "x.safetensors"]),
    "run/config.json": (["report", "run"],),
    "run/metrics.jsonl": (["report", "run"],),
    "sweep/sweep.json": (["report", "sweep"],),
    "teacher.safetensors": (CACHE,),
    "s.toml": ([*TRAIN, "--config", "s.toml"],),
    "names.txt": (["make-shards", "pictures", "new-shards", "--class-names", "names.txt"],),
    "new-run": (TRAIN,),
    "new.zarr": (CACHE,),
    "x.csv": (["report", "run", "--csv", "x.csv"],),
}
"""A file of the set, and commands that read or write it."""


def special_files(folder: Path, rng: Random) -> None:
    """A FIFO, a device, a socket, a folder or a circle of links in place of a file: refused, naming it."""
    name = rng.choice(list(SPECIAL))
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    what = rng.choice(["fifo", "/dev/zero", "/dev/full", "/dev/null", "socket", "circle", "folder", "nowhere"])
    if what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)  # binding one would limit the length of its path
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"circle": path.name, "nowhere": "nothing-here"}.get(what, what))
    words = rng.choice(SPECIAL[name])
    ended = light(words, folder)
    made = what in ("folder", "nowhere", "/dev/null") and name in ("new-run", "new.zarr", "x.csv", "s.toml")
    made = made or (name == "x.csv" and what in ("/dev/zero", "circle"))  # takes it all and keeps none; is replaced
    made = made or (what == "folder" and name.startswith("pictures/"))  # images may lie two folders deep
    if not made:
        _require_refused(ended, f"{what} as {name}: {' '.join(words[:2])}", Path(name).name)


def numbers_in_weights(folder: Path, rng: Random) -> None:
    """A tensor of weights with NaN, Inf, complex or whole numbers, of another shape, or gone: refused by its name."""
    student = rng.random() < 0.6
    path = folder / ("run/weights.safetensors" if student else "teacher.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    name = rng.choice([key for key in sorted(state) if state[key].is_floating_point() and state[key].numel()])
    how = rng.choice(["nan", "inf", "complex", "shape", "gone", "more", "whole"])
    tensor = state[name].clone()
    if how in ("nan", "inf"):
        tensor.view(-1)[rng.randrange(tensor.numel())] = float(how)
    changed = {
        "complex": lambda: tensor.to(torch.complex64) * (1 + 1j),
        "shape": lambda: tensor.reshape(-1)[:-1].clone(),
        "more": lambda: tensor,
        "whole": lambda: (tensor * 100).to(torch.int64),
    }.get(how, lambda: tensor)()
    state = {key: value for key, value in state.items() if key != name or how != "gone"}
    if how != "gone":
        state["of.tomorrow" if how == "more" else name] = changed
    save_file(state, path, metadata)
    commands = [PREDICT, ["evaluate", "--shards", "val", "--weights", "run/weights.safetensors", "--workers", "0"]]
    commands.append(["export", "run/weights.safetensors", "x.safetensors"])
    words = rng.choice(commands) if student else CACHE
    ended = light(words, folder)
    if how != "whole":  # they may be read as what they are
        shown = "of.tomorrow" if how == "more" else name
        _require_refused(ended, f"{how} {name}: {words[0]}", shown)


def twice(folder: Path, rng: Random) -> None:
    """One cache in two spellings is no two teachers."""
    (folder / "link.zarr").symlink_to("dense.zarr")
    (folder / "through").symlink_to(".")
    other = rng.choice([
        *("dense.zarr", "dense.zarr/", "./dense.zarr", "link.zarr", "through/dense.zarr", "run/../dense.zarr"),
        *(str(folder / "dense.zarr"), f"../{folder.name}/dense.zarr", f"{folder}//dense.zarr", "link.zarr/."),
    ])  # fmt: skip
    shown = light([*TRAIN, "--cache", other], folder)
    _require_refused(shown, f"--cache dense.zarr --cache {other}", "is the same cache as", codes=(2,))


_NO_WHOLE = ["64", True, -1, 1.5, math.nan, math.inf, [], {}, "x", 10**30, b"1", -(10**12)]
BAD_ARGUMENTS: dict[str, list[Any]] = {
    **{name: [*_NO_WHOLE, 0] for name in ("batch_size", "repeats", "epochs", "views_used", "accumulate", "prefetch")},
    **{name: [*_NO_WHOLE] for name in ("seed", "workers", "rank", "world_size")},
    "smoothing": ["0.1", True, -0.1, 1, 2.0, math.nan, math.inf, [], None],
    "pin": ["x", 1, 0, "yes", [], 2.0],
    "device": ["x", "gpu", 3.5, "cuda:99", [], "cpu:x", ""],
    "shards": [None, 3, [], b"train", math.nan],
    "cache": [3, 1.5, {}, b"x", True],
    "scratch": [3, [], True, "nowhere/at/all"],
    "shard_cache": [3, [], True],
}
"""Arguments of `Feed` and `FeedOptions`, with values that they must refuse by name."""


def feed_arguments(folder: Path, rng: Random) -> None:
    """`Feed` with one argument that is none: a ValueError or TypeError that names it."""
    name = rng.choice(list(BAD_ARGUMENTS))
    value = rng.choice(BAD_ARGUMENTS[name])

    def make() -> None:
        warnings.simplefilter("ignore")
        given: dict[str, Any] = {"shards": "train", "cache": "dense.zarr", "batch_size": 8, "workers": 0}
        options: dict[str, Any] = {}
        (options if name in FeedOptions.__dataclass_fields__ else given)[name] = value
        if name in ("rank", "world_size"):
            options = {"rank": 0, "world_size": 1} | options
        try:
            with Feed(given.pop("shards"), options=FeedOptions(**options), **given) as feed:
                for _ in feed.epoch(0):
                    pass
        except TypeError as error:
            raise ValueError(str(error)) from error  # Python's own word for a wrong type, where it names the argument

    ended = forked(make, ["Feed", f"{name}={value!r}"], folder)
    _require_refused(ended, f"Feed({name}={value!r})", name)


def servers(folder: Path, rng: Random) -> None:
    """A web or S3 server of shards or of a cache that lies, never ends or sends elsewhere: bounded, and one error."""
    shutil.copy(folder / "train/shards.index", folder / "train/shard.index")
    mood, scheme = rng.choice(list(MOODS)), rng.choice(["http", "s3"])
    of_cache = rng.random() < 0.5
    with MoodyServer(folder, mood, always=rng.random() < 0.7, late=rng.random() < 0.5) as server:
        place = f"http://127.0.0.1:{server.port}" if scheme == "http" else "s3://bucket"
        if of_cache:
            cache = f"{place}/dense.zarr"
            words = rng.choice([["verify-cache", cache], ["cache-status", cache], [*TRAIN, "--cache", cache]])
            words = [
                word for n, word in enumerate(words) if word != "dense.zarr" and words[n + 1 : n + 2] != ["dense.zarr"]
            ]
        else:
            pattern = f"{place}/train/shard-{{000000..000001}}.tar"
            words = rng.choice([["check-shards", pattern, "--workers", "0"], [*TRAIN, "--shards", pattern]])
            words = [*words, "--shard-cache", "fetched"]
        environ = s3_variables(f"http://127.0.0.1:{server.port}/") | {"XDG_CACHE_HOME": str(folder / "xdg")}
        ended = command(words, folder, environ=environ)  # a fork is refused a remote cache
        if server.elsewhere:
            raise TrialError(f"unclean: {mood}: {' '.join(words)}: asked another address for {server.elsewhere[:3]}")
        if server.met and server.always and mood not in ("good", "compressed"):
            _require_refused(ended, f"{mood} {scheme}: {' '.join(words[:2])}", codes=(1,))
    fetched = sum(path.stat().st_size for path in folder.glob("fetched/**/*") if path.is_file())
    if fetched > 64 << 20:
        raise TrialError(f"unclean: {mood}: {fetched >> 20} MiB of shards were kept, of a set of less than one")


def tars(folder: Path, rng: Random) -> None:
    """Any bytes of a tar changed, repeated, cut or moved, without an index: indexed, or refused by name."""
    path = folder / "train/shard-000000.tar"
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        block = 512 * rng.randrange(len(data) // 512)
        how = rng.choice(["flip", "zero", "cut", "repeat", "swap", "text"])
        if how == "flip":
            data[block + rng.randrange(512)] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del data[block + rng.choice([0, 1, 511]) :]
        elif how == "text":
            word = rng.choice(PIECES).encode("utf-8", "surrogateescape")[:90]
            data[block : block + len(word)] = word
        else:
            other = 512 * rng.randrange(max(1, len(data) // 512))
            new = {"zero": bytes(512), "repeat": data[block : block + 512] * 2, "swap": data[other : other + 512]}[how]
            data[block : block + 512] = new
        if len(data) < 1024:
            break
    path.write_bytes(data)
    for index in (folder / "train").glob("shards.*"):
        index.unlink()
    ended = light(["check-shards", "train", "--workers", "0", "--decode"], folder)
    if ended.code:
        _require_refused(ended, "a damaged tar", "shard-000000.tar", codes=(1,))


def pictures(folder: Path, rng: Random) -> None:
    """Pictures cut, damaged, enormous or of many scans: made into shards that decode, or refused by name."""
    path = folder / "pictures/c0/0.png"
    how = rng.choice(["flip", "cut", "enormous", "scans", "chunk", "kind"])
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(1, len(data)) :]
    elif how == "enormous":
        data[16:24] = struct.pack(">II", rng.choice([2**31 - 1, 10**5, 30_000]), rng.choice([2**31 - 1, 10**5, 30_000]))
    elif how == "chunk":
        at = rng.randrange(8, len(data))
        data[at:at] = rng.choice([b"tEXt", b"zTXt", b"iCCP", b"eXIf"]) * rng.randint(1, 50)
    elif how == "kind":
        image = Image.fromarray(np.zeros((8, 8), np.uint8))
        image.save(path, rng.choice(["JPEG", "GIF", "BMP", "WEBP"]))
        data = bytearray(path.read_bytes())
    else:
        path = folder / "pictures/c0/0.jpg"
        (folder / "pictures/c0/0.png").unlink()
        noise = np.random.default_rng(rng.randrange(99)).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path, progressive=True)
        data = bytearray(path.read_bytes())
        scan = data[data.rindex(b"\xff\xda") : -2]
        data[-2:] = scan * rng.choice([1, 90, 2000]) + b"\xff\xd9"
    path.write_bytes(data)
    ended = light(["make-shards", "pictures", "new-shards", "--workers", "0"], folder)
    if ended.code:
        _require_refused(ended, f"{how} picture", path.name, codes=(1,))
    elif light(["check-shards", "new-shards", "--workers", "0", "--decode"], folder).code:
        raise TrialError(f"silent: {how} picture: make-shards takes what does not decode")
    light(["predict", str(path.relative_to(folder)), *PREDICT[2:]], folder)


def settings(folder: Path, rng: Random) -> None:
    """A TOML file of any lines: used, or refused by name."""
    fields = [
        "lr",
        "epochs",
        "batch_size",
        "loss",
        "optimizer",
        "view",
        "view.size",
        "model",
        "x",
        "temperature",
        "a.b",
    ]
    lines = []
    for _ in range(rng.randint(1, 4)):
        value = json.dumps(rng.choice(HOSTILE))
        lines.append(rng.choice([f"{rng.choice(fields)} = {value}", f"[{rng.choice(fields)}]", value, "\x00", "é = 1"]))
    data = "\n".join(lines).encode() + rng.choice([b"", b"\xff", b"\xef\xbb\xbf"])
    (folder / "s.toml").write_bytes(data)
    light([*TRAIN, "--config", "s.toml"], folder)


HOSTILE_KINDS: dict[str, tuple[Callable[[Path, Random], None], int]] = {
    "arguments of models": (arguments, 4),
    "hostile names": (names, 4),
    "special files": (special_files, 6),
    "numbers in weights": (numbers_in_weights, 4),
    "one cache twice": (twice, 2),
    "arguments of Feed": (feed_arguments, 8),
    "hostile servers": (servers, 2),
    "damaged tars": (tars, 6),
    "damaged pictures": (pictures, 3),
    "settings files": (settings, 4),
}
"""Kinds of trial, and how many of each are tried in a turn: those that need no fresh process cost little."""
