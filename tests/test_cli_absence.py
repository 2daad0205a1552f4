"""What cannot be read now is neither absent nor damaged: it is an error that names it and the remedy, and all stays."""

import errno
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli import _words, cli
from shards.errors import ArtefactError, ShardError, system_words, unreadable_now
from shards.formats.file_tree import open_tree
from shards.own_folder import require_own
from shards.tars.image_rule import ImageRule
from shards.tars.image_shards import write_shards
from student.commands.predict import image_files
from student.cost.time_budget import TimeBudget
from student.feed.node_file import held_file, scratch_folder, shared_file
from student.run.checkpoint import finished_before, newest_of_all, save_checkpoint
from student.run.run_files import RUN_FOLDER, RunFiles
from student.run.run_log import RunLog
from student.run.run_reader import read_run
from student.sweep.grid import Grid
from student.sweep.sweep_directory import SweepDirectory
from student.sweep.sweep_loop import run_sweep
from teacher_cache.network.weights import read_weights
from teacher_cache.network.weights_metadata import trained_as
from teacher_cache.publish.packing import pack_cache
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.header import CACHE_FOLDER, header_at
from tests.cache_maker import make_cache

ROOT = Path(__file__).parent.parent
NOW = (errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT)
"""Says nothing of what is stored."""
EVEN_EIO = (*NOW, errno.EIO)
"""Where a failing disk is no reason to go on without what it holds either."""
IDENTITY = {"seed": 0}


class Refused(NamedTuple):
    """What the system refuses to open, list or look at, and what is then called."""

    path: Path
    call: Callable[[], object]


def refuse(patch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Let the system refuse a file or folder: to open, to list, and, but for too many files, to look at."""

    def refusing(real: Any) -> Any:
        def call(name: Any = ".", *rest: Any, **more: Any) -> Any:
            if isinstance(name, str | os.PathLike) and os.path.abspath(name) == str(path):
                raise OSError(number, os.strerror(number), str(path))
            return real(name, *rest, **more)

        return call

    for name in ("open", "scandir", "listdir"):
        patch.setattr(os, name, refusing(getattr(os, name)))
    opens = refusing(io.open)
    patch.setattr(io, "open", opens)
    patch.setattr("builtins.open", opens)
    if number in (errno.ESTALE, errno.EIO):
        for name in ("stat", "lstat"):
            patch.setattr(os, name, refusing(getattr(os, name)))


def bytes_of(folder: Path) -> dict[str, bytes | str]:
    """All that lies in a folder, without locks."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink()) and not path.name.endswith("lock")
    }


def photos(folder: Path, each: int = 3) -> Path:
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        for n in range(each):
            Image.new("RGB", (40, 40), (60 * n, len(label), 9)).save(folder / label / f"{n}.png")
    return folder


def shards_of(folder: Path, **rule: Any) -> Path:
    list(write_shards(folder / "photos", folder / "shards", samples_per_shard=3, seed=0, rule=ImageRule(**rule)))
    return folder / "shards"


def command(*words: str | Path) -> None:
    """Run a command; its words are the error."""
    ended = CliRunner().invoke(cli, [str(word) for word in words])
    if ended.exit_code:
        raise ArtefactError(ended.output)


def checkpoints(folder: Path) -> Path:
    folder.mkdir()
    for step in (1, 2):
        save_checkpoint(folder, {"w": torch.zeros(3)}, step=step, identity=IDENTITY, world_size=1)
    return folder


def of_run(folder: Path, part: str) -> Refused:
    """A part of a run's checkpoints: going on must not begin at an earlier step, nor at 0."""
    path = checkpoints(folder / "checkpoints")
    return Refused(path / part if part else path, lambda: newest_of_all([(path, IDENTITY)], 1))


def finished_run(folder: Path) -> Refused:
    path = checkpoints(folder / "checkpoints")
    files = RunFiles(folder)
    files.summary.write_text("{}")
    return Refused(path / "step-000000002.json", lambda: finished_before(files, 2, IDENTITY, 1))


def metrics_of_run(folder: Path) -> Refused:
    files = RunFiles(folder)
    files.metrics.write_text('{"kind": "step", "step": 1, "epoch": 0}\n')

    def go_on() -> None:
        with RunLog(folder) as log:
            log.begin({}, step=1)

    return Refused(files.metrics, go_on)


def config_of_run(folder: Path) -> Refused:
    (folder / "config.json").write_text('{"recipe": {}, "train": {}}')
    return Refused(folder / "config.json", lambda: require_own("--out", folder, RUN_FOLDER))


def state_of_run(folder: Path) -> Refused:
    checkpoints(folder / "checkpoints")
    (folder / "config.json").write_text("{}")
    return Refused(folder / "checkpoints", lambda: read_run(folder).last_step)


def cache_that_grows(folder: Path) -> Refused:
    make_cache(folder / "c")
    return Refused(folder / "c/zarr.json", lambda: header_at(folder / "c"))


def unfinished_cache(folder: Path) -> Refused:
    (folder / "c/logit/notes").mkdir(parents=True)
    (folder / "c/logit/notes/mine.txt").write_text("mine")
    return Refused(folder / "c/logit/notes", lambda: require_own("--cache", folder / "c", CACHE_FOLDER))


def packed_snapshot(folder: Path) -> Refused:
    """A pack that was stopped goes on where it was, not from the beginning."""
    make_cache(folder / "c")
    with TeacherCache.open(folder / "c") as cache:
        list(pack_cache(cache, str(folder / "p"), cache.num_views))
    (folder / "p/zarr.json").unlink()

    def pack() -> None:
        with TeacherCache.open(folder / "c") as cache:
            list(pack_cache(cache, str(folder / "p"), cache.num_views))

    return Refused(folder / "p/ledger/c/0/0", pack)


def an_image(folder: Path, *, skip_bad: bool) -> Refused:
    photos(folder / "photos")
    return Refused(folder / "photos/ant/1.png", lambda: shards_of(folder, skip_bad=skip_bad))


def a_finished_tar(folder: Path) -> Refused:
    photos(folder / "photos")
    shards = shards_of(folder)
    return Refused(shards / "shard-000000.tar", lambda: shards_of(folder))


def journal(folder: Path) -> Refused:
    photos(folder / "photos")
    return Refused(shards_of(folder) / ".make-shards.jsonl", lambda: shards_of(folder))


def folder_of_tars(folder: Path) -> Refused:
    photos(folder / "photos")
    shards = shards_of(folder)
    return Refused(shards, lambda: shards_of(folder, decode=False, max_pixels=4000))


def touched(folder: Path) -> Path:
    """Finished shards of photos that have another time of change now."""
    photos(folder / "photos")
    shards = shards_of(folder)
    os.utime(folder / "photos/ant/1.png", ns=(1, 1))
    return shards


def index_beside_a_changed_source(folder: Path) -> Refused:
    return Refused(touched(folder) / "shards.index", lambda: shards_of(folder))


def image_of_a_changed_source(folder: Path) -> Refused:
    touched(folder)
    return Refused(folder / "photos/ant/1.png", lambda: shards_of(folder))


def index_written_anew(folder: Path) -> Refused:
    photos(folder / "photos")
    shards = shards_of(folder)
    (shards / "shard-000001.tar").unlink()  # fewer samples than the index says
    words = ("check-shards", shards, "--overwrite", "--workers", "0")
    return Refused(shards / "shards.index", lambda: command(*words))


def folder_below_a_tree(folder: Path) -> Refused:
    photos(folder / "photos/train")
    return Refused(folder / "photos/train", lambda: open_tree(folder / "photos").folders("train"))


def photos_to_predict(folder: Path) -> Refused:
    photos(folder / "photos")
    return Refused(folder / "photos/ant", lambda: image_files([folder / "photos"]))


def weights_of_ours(folder: Path) -> Refused:
    path = folder / "weights.safetensors"
    header = b'{"__metadata__": {}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return Refused(path, lambda: trained_as(path))


def torch_weights(folder: Path) -> Refused:
    torch.save({"w": torch.zeros(3)}, folder / "w.pt")
    return Refused(folder / "w.pt", lambda: read_weights(folder / "w.pt"))


def parquet(folder: Path) -> Refused:
    pytest.importorskip("pyarrow")
    (folder / "data").mkdir()
    (folder / "data/x.parquet").write_bytes(b"PAR1")
    return Refused(folder / "data", lambda: command("make-shards", folder, folder / "s", "--format", "parquet"))


def budget(folder: Path) -> Refused:
    (folder / "budget.json").write_text("{}")
    return Refused(folder / "budget.json", lambda: TimeBudget(60, folder))


def shared_records(folder: Path) -> Refused:
    """A file that another process of this machine holds: its link stays."""
    scratch = scratch_folder(folder)
    held = shared_file(scratch, "key", lambda descriptor: None)
    link = next(path for path in scratch.iterdir() if path.is_symlink())
    return Refused(link, lambda: (held, held_file(scratch, "key")))


def sweep(folder: Path, part: str) -> Refused:
    """A cell that is done is not trained again, nor shown as one that waits."""
    grid = Grid(weights=(0,), temperatures=(1,), seeds=(0,))
    directory = SweepDirectory(folder)
    directory.prepare(grid, common={}, facts={})
    cell = grid.cells()[0]
    run = RunFiles(directory.run_path(cell))
    run.out.mkdir()
    run.config.write_text("{}")
    run.summary.write_text("{}")
    (folder / f"status/{cell.name}.json").write_text('{"state": "done", "attempts": 1}')
    places = {"status": folder / f"status/{cell.name}.json", "summary": run.summary, "grid": folder / "sweep.json"}
    return Refused(places[part], lambda: list(run_sweep(folder, grid, train=never, common={}, facts={})))


def never(jobs: object) -> Any:
    raise AssertionError("a finished cell is trained again")


CASES: dict[str, tuple[Callable[[Path], Refused], tuple[int, ...]]] = {
    "the checkpoints of a run": (lambda at: of_run(at, ""), EVEN_EIO),
    "a checkpoint's manifest": (lambda at: of_run(at, "step-000000002.json"), NOW),
    "a checkpoint": (lambda at: of_run(at, "step-000000002.pt"), NOW),
    "the last manifest of a finished run": (finished_run, NOW),
    "the metrics of a run": (metrics_of_run, EVEN_EIO),
    "the configuration of a run": (config_of_run, EVEN_EIO),
    "the steps of a run that is read": (state_of_run, EVEN_EIO),
    "the header of a cache": (cache_that_grows, EVEN_EIO),
    "a folder in an unfinished cache": (unfinished_cache, EVEN_EIO),
    "the ledger of a packed cache": (packed_snapshot, NOW),
    "an image": (lambda at: an_image(at, skip_bad=False), EVEN_EIO),
    "an image, with --skip-bad": (lambda at: an_image(at, skip_bad=True), EVEN_EIO),
    "a finished tar": (a_finished_tar, NOW),
    "the journal of make-shards": (journal, EVEN_EIO),
    "a folder of tars": (folder_of_tars, EVEN_EIO),
    "the index of shards whose source has other times": (index_beside_a_changed_source, NOW),
    "an image of a source that has other times": (image_of_a_changed_source, EVEN_EIO),
    "an index that is written anew": (index_written_anew, NOW),
    "a folder of photos": (folder_below_a_tree, EVEN_EIO),
    "a folder of photos to predict": (photos_to_predict, EVEN_EIO),
    "weights of this project": (weights_of_ours, EVEN_EIO),
    "weights of torch": (torch_weights, NOW),
    "a folder of Parquet files": (parquet, EVEN_EIO),
    "the time that distill has used": (budget, EVEN_EIO),
    "records that another process holds": (shared_records, (errno.EMFILE, errno.ENFILE)),
    "the status of a cell": (lambda at: sweep(at, "status"), EVEN_EIO),
    "the grid of a sweep": (lambda at: sweep(at, "grid"), EVEN_EIO),
}


@pytest.mark.parametrize(
    ("case", "number"), [(case, number) for case, (_, numbers) in CASES.items() for number in numbers],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value,
)  # fmt: skip
def test_what_cannot_be_read_now_is_named_and_everything_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, number: int
) -> None:
    make, _ = CASES[case]
    refused = make(tmp_path)
    before = bytes_of(tmp_path)
    with monkeypatch.context() as patch:
        refuse(patch, refused.path, number)
        with pytest.raises((ArtefactError, OSError, ValueError)) as raised:
            refused.call()
    said = _words(raised.value)[0]
    what, remedy = system_words(OSError(number, os.strerror(number))).split("; ")
    assert refused.path.name in said and what in said.lower() and remedy.split(",")[0] in said.replace("\n", " "), said
    after = {name: data for name, data in bytes_of(tmp_path).items() if name in before}
    assert after == before


def test_a_link_to_a_class_that_nobody_may_follow_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --ignore-unknown a file beside the classes is passed over, and the class would be."""
    photos(tmp_path / "photos")
    (tmp_path / "photos/cow").symlink_to(tmp_path / "elsewhere")

    def look(_: object) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "photos/cow"))

    class Entry(NamedTuple):
        name: str
        is_dir: Callable[[], bool]

    real = os.scandir

    class Listed(list[Any]):
        def __enter__(self) -> "Listed":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def scandir(place: Any) -> Any:
        with real(place) as entries:
            return Listed(Entry(e.name, (lambda: look(0)) if e.name == "cow" else e.is_dir) for e in entries)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ShardError, match="photos/cow: permission denied"):
        list(write_shards(tmp_path / "photos", tmp_path / "s", samples_per_shard=3, seed=0, ignore_unknown=True))


def test_errors_behind_each_other_are_looked_at_once() -> None:
    one, other = ValueError(), KeyError()
    one.__cause__, other.__context__ = other, one
    assert unreadable_now(one) is None
    other.__context__ = full = OSError(errno.EMFILE, "full")
    assert unreadable_now(one) is full


def test_folders_are_listed_at_one_place() -> None:
    """`Path.glob` and `os.walk` take a folder that cannot be listed for empty."""
    sources = [path for part in ("shards", "teacher_cache", "student") for path in (ROOT / part).rglob("*.py")]
    listing = re.compile(r"\.r?glob\(|os\.walk\(")
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (*sources, ROOT / "cli.py")}
    assert [name for name, text in texts.items() if listing.search(text)] == ["shards/documents.py"]
