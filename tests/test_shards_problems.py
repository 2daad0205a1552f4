"""Everything that is wrong is said at once: counted by kind, with three examples and what to do about it."""

import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli import cli
from shards.errors import Problem, ShardError, problems_text
from shards.index.class_names import read_class_names
from shards.index.pixel_rule import DEFAULT_QUALITY, CompactRule, PixelRule
from shards.index.shard_index import open_index
from shards.own_folder import CACHE_KIND
from shards.tars.image_rule import ImageRule
from shards.tars.image_shards import write_shards
from shards.tars.journal import JOURNAL_NAME
from shards.tars.writer import write_samples
from tests.test_shards_shard_index import put, tar_of


def encoded(n: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (n % 256, n // 256, 7)).save(file, kind)
    return file.getvalue()


def tree(root: Path, classes: tuple[str, ...] = ("ant", "bee"), each: int = 5) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for n in range(each):
            (root / name / f"{n}.png").write_bytes(encoded(100 * label + n))
    return root


def make(source: Path, dest: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["make-shards", str(source), str(dest), "--workers", "1", *words])


def test_the_first_refusal_of_a_messy_folder_names_every_way_out(tmp_path: Path) -> None:
    """Files that are no images were refused first, damaged images after them, each with a flag of its own."""
    photos = tree(tmp_path / "photos")
    for name, data in (("ant/cut.png", encoded()[:50]), ("ant/a.heic", b"x"), ("bee/b.gif", b"x"), ("notes.txt", b"x")):
        (photos / name).write_bytes(data)
    refused = make(photos, tmp_path / "shards")
    assert refused.exit_code == 1 and len(refused.output) <= 700
    assert "--ignore-unknown" in refused.output and "--skip-bad" in refused.output and "3 problems" in refused.output
    assert "…" not in refused.output, "the reason is not cut out of the middle"
    made = make(photos, tmp_path / "shards", "--ignore-unknown", "--skip-bad", str(tmp_path / "left-out.txt"))
    assert made.exit_code == 0, made.output


def test_what_is_left_out_is_listed_by_its_path_in_the_source(tmp_path: Path) -> None:
    """With --split the part was written before it, as of a folder that the source does not have."""
    photos = tree(tmp_path / "photos")
    (photos / "ant" / "cut.png").write_bytes(encoded()[:50])
    skip = ["--skip-bad", str(tmp_path / "left-out.txt")]
    assert make(photos, tmp_path / "shards", "--split", "0.2", *skip).exit_code == 0
    lines = (tmp_path / "left-out.txt").read_text().splitlines()[1:]
    assert len(lines) == 1 and lines[0].startswith("ant/cut.png: ")
    again = make(photos, tmp_path / "shards", "--split", "0.4", *skip)
    assert again.exit_code == 1 and "or --split changed" in " ".join(again.output.split())


# The one function.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100, 3000])
@pytest.mark.parametrize("chars", [5, 200, 4000])
@pytest.mark.parametrize("num_kinds", [1, 2, 9])
def test_any_number_of_problems_is_one_short_message(count: int, chars: int, num_kinds: int) -> None:
    problems = [
        Problem(f"file{n}: {'x' * chars}", f"kind {n % num_kinds}", f"advice {n % num_kinds}") for n in range(count)
    ]
    text = problems_text("/data", problems)
    assert text.startswith("/data: ") and "file0: " in text and "advice 0" in text
    if count == 1:
        assert text == f"/data: {problems[0].text}; advice 0"
        return
    assert f"{count} problems" in text and len(text) <= 600 and len(text.splitlines()) <= 6
    for kind in range(min(num_kinds, count, 5)):
        of_kind = len([problem for problem in problems if problem.kind == f"kind {kind}"])
        assert f"{of_kind} × kind {kind}" in text
    shown = sum(line.startswith("  file") for line in text.splitlines())
    assert shown == min(3, count) and (f"and {count - shown} more" in text) == (count > shown)


@pytest.mark.parametrize(("num_kinds", "says"), [(5, ""), (6, ""), (7, "2 more kinds"), (9, "4 more kinds")])
def test_kinds_are_counted_only_where_several_are_not_named(num_kinds: int, says: str) -> None:
    """ "1 kinds more" hid the only one that mattered."""
    text = problems_text("", [Problem(f"file{n}", f".kind{n}") for n in range(num_kinds)])
    named = [n for n in range(num_kinds) if f"1 × .kind{n}" in text]
    assert len(named) == (num_kinds if not says else 5) and (says in text) and ("more kinds" in text) == bool(says)


def test_the_examples_are_of_different_kinds_first() -> None:
    problems = [Problem(f"a{n}", "common") for n in range(9)] + [Problem("b", "rare"), Problem("c", "other")]
    lines = problems_text("", problems).splitlines()
    assert [line.strip() for line in lines[1:4]] == ["a0", "b", "c"]


# A tree.


def test_all_that_is_wrong_with_a_tree_is_counted_at_once(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    for n in range(40):
        (source / "ant" / f"a{n}.xml").write_bytes(b"x")
    for name in ("ant/b.txt", "bee/notes", "bee/c.gif", "bee/d.heic", "top.txt", "bee/0.jpg", "bee/two\nlines.png"):
        (source / name).write_bytes(b"x")
    (source / "cow").mkdir()
    os.mkfifo(source / "ant" / "pipe.png")
    (source / "ant" / "gone.png").symlink_to(source / "nowhere")
    with pytest.raises(ShardError) as caught:
        list(write_shards(source, tmp_path / "out", samples_per_shard=6, seed=1))
    text = str(caught.value)
    assert "50 problems: 40 × file .xml" in text and "more kinds" in text
    assert "ant/a0.xml: expected an image" in text and "--ignore-unknown" in text
    assert not (tmp_path / "out").exists(), "nothing is made of it"


@pytest.mark.slow
def test_unknown_files_are_passed_over_and_counted_when_asked_for(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    for name in ("ant/b.txt", "ant/c.txt", "bee/notes", "bee/c.gif", "top.txt", "bee/.hidden"):
        (source / name).write_bytes(b"x")
    assert make(source, tmp_path / "no").exit_code == 1
    done = make(source, tmp_path / "out", "--ignore-unknown")
    assert done.exit_code == 0, done.output
    assert "3 × .txt" in done.output and "1 × .gif" in done.output and "2 × without a suffix" in done.output
    assert make(tree(tmp_path / "clean"), tmp_path / "same").exit_code == 0
    tars = [sorted((tmp_path / name).glob("*.tar"))[0].read_bytes() for name in ("out", "same")]
    assert tars[0] == tars[1], "the shards do not depend on what was passed over"


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "pjpeg", "pjp", "JFIF"])
def test_jpegs_by_other_names_are_taken(suffix: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    (source / "ant" / f"more.{suffix}").write_bytes(encoded(7, "JPEG"))
    assert make(source, tmp_path / "out").exit_code == 0
    assert open_index(str(tmp_path / "out")).find("ant/more")


@pytest.mark.parametrize("what", ["zero", "fifo", "folder_link"])
def test_only_regular_files_are_read(what: str, tmp_path: Path) -> None:
    """A link to /dev/zero never ends, a FIFO never begins."""
    source = tree(tmp_path / "in")
    path = source / "ant" / "x.png"
    if what == "zero":
        path.symlink_to("/dev/zero")
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev")
    done = make(source, tmp_path / "out")
    assert done.exit_code == 1 and "x.png" in done.output, done.output


# Pictures.


def _large_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_unusable_pictures_of_all_shards_are_named_where_shards_are_made(workers: int, tmp_path: Path) -> None:
    source = tree(tmp_path / "in", each=20)
    (source / "ant" / "big.png").write_bytes(_large_png(10_000, 9_000))
    (source / "bee" / "page.jpg").write_bytes(b"<html>")
    (source / "bee" / "cut.png").write_bytes(encoded()[:20])
    with pytest.raises(ShardError) as caught:
        list(write_shards(source, tmp_path / "out", samples_per_shard=6, seed=1, workers=workers))
    text = str(caught.value)
    assert "3 of 43 images cannot be taken" in text
    for said in ("ant/big.png: expected at most 89,478,485 pixels", "bee/page.jpg: expected", "bee/cut.png: "):
        assert said in text
    assert not (tmp_path / "out" / "shards.index").exists()


@pytest.mark.parametrize("compact", [[], ["--max-side", "32"]])
def test_the_limit_of_pixels_can_be_lowered(compact: list[str], tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    assert make(source, tmp_path / "ok", "--max-pixels", "72", *compact).exit_code == 0
    done = make(source, tmp_path / "out", "--max-pixels", "71", *compact)
    assert done.exit_code == 1 and "10 of 10 images" in done.output and "1 to 71 pixels" in done.output


# After the advice was followed.


def test_the_same_command_goes_on_after_a_picture_was_replaced(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", each=20), tmp_path / "out"
    options = ["--samples-per-shard", "6"]
    bad = source / "ant" / "7.png"
    good = bad.read_bytes()
    bad.write_bytes(b"<html>404</html>")
    assert make(source, out, *options).exit_code == 1
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(before) == 6, "the shards without it are finished"
    bad.write_bytes(good)
    (source / "bee" / "3.png").write_bytes(encoded(777))  # in a shard that was finished
    assert make(source, out, *options).exit_code == 0
    kept = [name for name, time in before.items() if (out / name).stat().st_mtime_ns == time]
    assert len(kept) == 5, "all but the shard of the second picture"
    assert make(source, tmp_path / "anew", *options).exit_code == 0
    for path in out.glob("shard*"):
        assert path.read_bytes() == (tmp_path / "anew" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("replace", "2 of 10 images changed: ant/0, bee/1"),
        ("same_size", "1 of 10 images changed: ant/3"),
        ("add", "1 of 11 images new: ant/new"),
        ("remove", "1 of 10 images gone: bee/4"),
        ("rename", "1 of 10 images new: bee/other, 1 of 10 images gone: bee/4"),
    ],
)
def test_a_tree_that_changed_after_its_shards_were_finished_is_refused_with_what_changed(
    change: str, said: str, tmp_path: Path
) -> None:
    source, out = tree(tmp_path / "in"), tmp_path / "out"
    assert make(source, out).exit_code == 0
    same = source / "ant" / "3.png"
    if change == "replace":
        for name in ("ant/0.png", "bee/1.png"):
            (source / name).write_bytes(encoded(3, "JPEG"))
    elif change == "same_size":
        data = same.read_bytes()
        same.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif change == "add":
        (source / "ant" / "new.png").write_bytes(encoded(3))
    elif change == "remove":
        (source / "bee" / "4.png").unlink()
    else:
        (source / "bee" / "4.png").rename(source / "bee" / "other.png")
    refused = make(source, out)
    assert refused.exit_code == 1 and said in refused.output, refused.output


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ((), ImageRule()),
        (("--max-side", "32"), ImageRule(CompactRule(max_side=32, quality=DEFAULT_QUALITY))),
        (("--upright",), ImageRule(pixels=PixelRule(upright=True))),
        (("--skip-bad", "bad.txt"), ImageRule(skip_bad=True)),
    ],
)
def test_shards_of_a_tree_that_was_copied_again_stay(
    options: tuple[str, ...], rule: ImageRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy has other times of change: every tar is made again, must be the same, and is kept; else it is refused."""
    monkeypatch.chdir(tmp_path)
    source, out = tree(tmp_path / "in", each=10), tmp_path / "out"
    options = (*options, "--samples-per-shard", "6")
    if "--skip-bad" in options:
        (source / "ant" / "7.png").write_bytes(b"<html>")
    assert make(source, out, *options).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.glob("shard*")}

    def unchanged() -> bool:
        return before == {path.name: path.read_bytes() for path in out.glob("shard*")}

    for path in source.rglob("*.png"):
        os.utime(path, (1, 1))
    first, second = make(source, out, *options), make(source, out, *options)
    assert first.exit_code == second.exit_code == 0, first.output
    assert "already complete" in first.output and "already complete" in second.output and unchanged()

    copied = list(source.rglob("*.png"))
    for path in copied:
        os.utime(path, (2, 2))
    events = write_shards(source, out, samples_per_shard=6, seed=0, rule=rule)
    next(events)
    events.close()  # a kill: what is compared already does not make the others finished
    for path in copied:
        if path.stem != "7":
            path.write_bytes(encoded(9999))
    refused = make(source, out, *options)
    assert refused.exit_code == 1 and "made from" in refused.output and unchanged(), refused.output


def test_a_picture_taken_out_of_an_unfinished_set_is_refused_with_what_to_remove(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", each=20), tmp_path / "out"
    bad = source / "ant" / "7.png"
    bad.write_bytes(b"<html>")
    assert make(source, out, "--samples-per-shard", "6").exit_code == 1
    bad.unlink()
    refused = make(source, out, "--samples-per-shard", "6")
    assert refused.exit_code == 1 and f"remove its *.tar and {JOURNAL_NAME}" in refused.output
    for path in (*out.glob("*.tar"), out / JOURNAL_NAME):
        path.unlink()
    assert make(source, out, "--samples-per-shard", "6").exit_code == 0


@pytest.mark.parametrize("change", ["replace", "remove", "other_settings"])
def test_what_a_try_left_that_finished_no_shard_is_no_obstacle(change: str, tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in"), tmp_path / "out"
    bad = source / "ant" / "2.png"
    bad.write_bytes(b"<html>")
    assert make(source, out).exit_code == 1
    assert [path.name for path in out.iterdir()] == [JOURNAL_NAME]
    if change == "remove":
        bad.unlink()
    else:
        bad.write_bytes(encoded(9))
    assert make(source, out, *(["--order-seed", "5"] if change == "other_settings" else [])).exit_code == 0


# Class names.


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"ant\nbee\n", ("ant", "bee")),
        (b"\xef\xbb\xbfant\r\nbee\r\n", ("ant", "bee")),
        (b"\n  ant \n\nbee", ("ant", "bee")),
        ("tench, Tinca tinca\nBoeing 737\nÄmse\n".encode(), ("tench, Tinca tinca", "Boeing 737", "Ämse")),
        (b"2\n10\n", ("2", "10")),
    ],
)
def test_a_list_of_class_names_is_plain(data: bytes, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    assert read_class_names(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"# mine\nant\nbee\n", "line 1: '# mine': a comment"),
        (b"ant,0\nbee,1\n", "2 of 2 lines .* line 1: 'ant,0': a column of numbers"),
        (b"0;ant\n1;bee\n", "line 1: '0;ant': a column of numbers"),
        (b"ant\t0\nbee\t1\n", "a column of numbers"),
        (b"ant\nn01\ttench\n", "line 2: .* control characters"),
        (b"ant\nbee\n\nant\n", "line 4: 'ant': also line 1"),
        (b"#\nant,0\nbee\n", "2 of 3 lines are no class names: 1 × comment, 1 × line of a table"),
        ("ant\nbee\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"caf\xe9\n", "expected a UTF-8 file"),
        (b"\n \n", "at least two classes, one a line, got 0"),
        (b"ant\n", "at least two classes, one a line, got 1"),
    ],
)
def test_a_list_that_is_more_than_names_is_refused_with_its_lines(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    done = make(tree(tmp_path / "in"), tmp_path / "out", "--class-names", str(tmp_path / "names.txt"))
    assert done.exit_code == 2, done.output
    with pytest.raises(ValueError, match=f"(?s){said}"):
        read_class_names(tmp_path / "names.txt")


def test_names_and_folders_that_do_not_meet_are_all_said(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ("ant", "bee", "cat", "dog"))
    (tmp_path / "names.txt").write_text("Ant\nBee\nCat\nDog\n")
    done = make(source, tmp_path / "out", "--class-names", str(tmp_path / "names.txt"))
    assert done.exit_code == 1 and "4 problems: 4 × folder that is no class" in done.output
    assert "ant: this folder is not among the 4 class names given; the nearest is 'Ant'" in done.output
    (tmp_path / "names.txt").write_text("ant\nbee\nbird\ncat\ndog\nelk\n")
    done = make(source, tmp_path / "out", "--class-names", str(tmp_path / "names.txt"))
    assert done.exit_code == 0 and "without an image: 2 of 6 classes: 'bird', 'elk'" in done.output


# Shards and their index.


def check(shards: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["check-shards", str(shards), "--workers", "1", *words])


def made(tmp_path: Path, **options: object) -> Path:
    """Ten samples of two named classes in shards of four."""
    out = tmp_path / "out"
    list(write_shards(tree(tmp_path / "in"), out, samples_per_shard=4, seed=1))
    return out


@pytest.mark.parametrize("damage", ["deleted", "deleted_by_copying", "head", "array", "array_without_copy"])
def test_an_index_made_again_is_the_one_before_with_its_class_names(damage: str, tmp_path: Path) -> None:
    out = made(tmp_path)
    index = out / "shards.index"
    before = index.read_bytes()
    if damage == "deleted":
        index.unlink()
    elif damage == "deleted_by_copying":
        for path in out.glob(".*"):
            path.unlink()
        index.unlink()
    else:
        at = 30 if damage == "head" else len(before) - 70
        index.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        if damage == "array_without_copy":
            (out / "shards.classes.json").unlink()
        refused = check(out)
        assert refused.exit_code == 1 and "--overwrite" in refused.output, "the advice"
    done = check(out, *(["--overwrite"] if index.exists() else []))
    assert done.exit_code == 0, done.output
    assert index.read_bytes() == before
    assert open_index(str(out)).class_names == ("ant", "bee")


def test_the_copy_of_the_names_follows_the_index(tmp_path: Path) -> None:
    out = made(tmp_path)
    assert check(out, "--overwrite", "--num-classes", "7").exit_code == 0
    assert not (out / "shards.classes.json").exists(), "names that were dropped do not come back"
    (tmp_path / "names.txt").write_text("Ameise\nBiene\n")
    assert check(out, "--overwrite", "--class-names", str(tmp_path / "names.txt")).exit_code == 0
    (out / "shards.index").unlink()
    assert check(out).exit_code == 0
    assert open_index(str(out)).class_names == ("Ameise", "Biene")
    (out / "shards.index").unlink()
    (out / "shards.classes.json").write_text("[1, 2]")
    refused = check(out)
    assert refused.exit_code == 1 and "shards.classes.json" in refused.output and "--class-names" in refused.output


def test_a_missing_shard_is_named_everywhere_and_never_dropped_by_following_advice(tmp_path: Path) -> None:
    out = made(tmp_path)
    num_rows = open_index(str(out)).num_rows(1)
    (out / "shard-000001.tar").rename(tmp_path / "away.tar")
    refused = check(out)
    said = f"shard-000001.tar ({num_rows} samples): in the index, but missing here"
    assert refused.exit_code == 1 and said in refused.output and "copy missing shards again" in refused.output
    with pytest.raises(ShardError) as caught:
        open_index(str(out))
    assert said in str(caught.value) and "check-shards" not in str(caught.value)
    before = (out / "shards.index").read_bytes()
    refused = check(out, "--overwrite")
    assert refused.exit_code == 1 and (out / "shards.index").read_bytes() == before
    assert "at least 10 samples in 3 shards" in refused.output and "missing: shard-000001.tar" in refused.output
    assert check(out, "--overwrite", "--allow-fewer").exit_code == 0
    assert open_index(str(out)).num_samples == 10 - num_rows


def test_flags_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    out = made(tmp_path)
    assert check(out, "--allow-fewer").exit_code == 2
    assert check(out, "--max-pixels", "99").exit_code == 2


def test_all_pictures_that_do_not_decode_are_named_and_counted(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", each=20)
    for name in ("ant/3", "ant/4", "bee/0", "bee/1", "bee/19"):
        data = encoded(5)
        (source / f"{name}.png").write_bytes(data[:-25])  # a header that reads, rows that are cut
    list(write_shards(source, tmp_path / "out", samples_per_shard=40, seed=1, rule=ImageRule(decode=False)))
    done = check(tmp_path / "out", "--decode")
    assert done.exit_code == 1
    lines = [line for line in done.output.splitlines() if line.startswith("  /")]
    for name in ("ant/3", "ant/4", "bee/0", "bee/1", "bee/19"):
        assert any(f"{name}.png" in line for line in lines), done.output
    assert "1 of 1 shard not as expected, 5 problems" in done.output
    assert "38 of 40" not in done.output and check(tmp_path / "out").exit_code == 0


def test_every_difference_between_index_and_shard_is_counted(tmp_path: Path) -> None:
    out = made(tmp_path)
    for name in ("ant/0", "ant/1", "bee/3"):
        (tmp_path / "in" / f"{name}.png").write_bytes(encoded(900))
    list(write_shards(tmp_path / "in", tmp_path / "new", samples_per_shard=10, seed=1))
    list(write_shards(tree(tmp_path / "old_in"), tmp_path / "old", samples_per_shard=10, seed=1))
    (tmp_path / "new" / "shards.index").write_bytes((tmp_path / "old" / "shards.index").read_bytes())
    refused = check(tmp_path / "new")
    assert refused.exit_code == 1 and "3 of 10 samples: offset" in refused.output, refused.output
    assert out.is_dir()


def test_all_keys_that_two_shards_share_are_counted(tmp_path: Path) -> None:
    one, two = made(tmp_path), tmp_path / "two"
    two.mkdir()
    (two / "again.tar").write_bytes((one / "shard-000000.tar").read_bytes())
    refused = check(Path(f"{one}::{two}"), "--overwrite")
    assert refused.exit_code == 1 and "3 keys are in two shards" in refused.output, refused.output


# Shards of others.


def test_all_members_of_no_sample_are_counted_by_suffix(tmp_path: Path) -> None:
    files = {f"k{n}.{suffix}": b"0" for n in range(9) for suffix in ("cls", "npy")}
    files |= {f"k{n}.png": encoded(n) for n in range(9)} | {"README": b"x", "k1.seg.map": b"x"}
    put(tmp_path / "x.tar", dict(sorted(files.items())))
    refused = check(tmp_path / "x.tar")
    assert refused.exit_code == 1
    assert "11 members are of no sample, the first 'README' at offset" in refused.output
    assert ": 9 × .npy, 1 × name without a suffix, 1 × .seg.map" in refused.output
    assert check(tmp_path / "x.tar", "--ignore-unknown").exit_code == 0


def test_a_tar_of_tars_or_of_images_alone_is_called_what_it_is(tmp_path: Path) -> None:
    """As ImageNet is downloaded: never an advice after which nothing is left."""
    inner = tar_of({f"n01_{n}.JPEG": encoded(n, "JPEG") for n in range(3)}).getvalue()
    put(tmp_path / "outer.tar", {"n01.tar": inner, "n02.tar": inner})
    (tmp_path / "inner.tar").write_bytes(inner)
    for name, said in (("outer", "a tar in a tar"), ("inner", "images without labels")):
        refused = check(tmp_path / f"{name}.tar")
        assert refused.exit_code == 1 and said in refused.output and "make-shards" in refused.output
        assert "--ignore" not in refused.output and "--label-key" not in refused.output
    refused = check(tmp_path / "outer.tar", "--ignore-unknown")
    assert refused.exit_code == 1 and "holds no samples (passed over: 2 × .tar)" in refused.output
    assert make(tmp_path / "outer.tar", tmp_path / "out").exit_code == 0, "as advised"


ZARR = {
    "CACHE": json.dumps({"node_type": "group", "attributes": {"kind": CACHE_KIND}}),
    "GROUP": json.dumps({"node_type": "group", "attributes": {"kind": "photos"}}),
}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.tar.gz", "b.tar.gz"], "got 2 compressed ones (a.tar.gz)"),
        (["a.jpg"], "make-shards"),
        (["ant/"], "make-shards"),
        (["ant/", "train/", "train/a.tar", "val/", "val/a.tar"], "shards in them: train, val; give one of them"),
        (["zarr.json={CACHE}", "units/"], "got a teacher cache: it is given by --cache"),
        (["zarr.json={GROUP}", "units/"], "make-shards"),
        (["notes.txt"], "got none; check the path"),
    ],
)
def test_a_folder_without_tars_is_called_what_it_is(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        path, _, content = name.partition("=")
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / path).write_text(content.format(**ZARR) or "x")
    refused = check(tmp_path)
    assert refused.exit_code == 1 and said in refused.output, refused.output


def test_a_path_that_does_not_exist_is_called_so(tmp_path: Path) -> None:
    refused = check(tmp_path / "nope")
    assert refused.exit_code == 1 and "nope: no such file or folder" in refused.output
    assert "compressed" in check(tmp_path / "nope.tar.gz").output


def test_a_name_that_is_no_utf8_is_not_called_damage(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("café.png"), io.BytesIO())
    refused = check(tmp_path / "x.tar")
    assert refused.exit_code == 1 and "as Latin-1 it is 'café.png'" in refused.output
    assert "damaged" not in refused.output


# Samples from Python.


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (("a", 1.7, "png", encoded()), "sample 'a': expected an integer label, got 1.7"),
        (("a", float("nan"), "png", encoded()), "expected an integer label, got nan"),
        (("a", "cat", "png", encoded()), "expected an integer label, got 'cat'"),
        (("a", 1, "png", encoded(1, "JPEG")), "expected a png image as its suffix says, got a jpg"),
        (("a", 1, "webp", encoded()), "expected a webp image as its suffix says, got a png"),
        (("a.b", 1, "png", encoded()), "write dots as %2E"),
        (("x/", 1, "png", encoded()), "not empty"),
    ],
)
def test_a_sample_that_is_not_what_it_says_is_refused_in_one_sentence(
    sample: tuple[str, int, str, bytes], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ShardError) as caught:
        write_samples([("ok", 0, "png", encoded()), sample], tmp_path, num_classes=2)
    assert said in str(caught.value) and "\n" not in str(caught.value) and "--" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", [1, 1.0, True, np.int64(1), np.float32(1), np.uint8(1)])
def test_a_label_that_is_an_integer_is_taken(label: int, tmp_path: Path) -> None:
    assert write_samples([("a", label, "JPEG", encoded(0, "JPEG"))], tmp_path).label_N.tolist() == [1]


@pytest.mark.parametrize(("per_shard", "times"), [(1000, 1), (5, 2)])
def test_the_only_problem_of_the_only_shard_is_said_once(tmp_path: Path, per_shard: int, times: int) -> None:
    """Of several shards the line stands where the bar is, and again in the error at the end."""
    source = tree(tmp_path / "in", each=4)
    (source / "ant/1.png").write_bytes(encoded(5)[:-25])
    list(write_shards(source, tmp_path / "out", samples_per_shard=per_shard, seed=1, rule=ImageRule(decode=False)))
    assert check(tmp_path / "out", "--decode").output.count("ant/1") == times
