"""Compact shards: smaller for good, the same for everybody, off unless asked for, and said in the index."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import cli
from shards.errors import ShardError
from shards.index.pixel_rule import CompactRule
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex, open_index
from shards.rng import stream
from shards.tars.compacting import compacted, reduced_size
from shards.tars.image_rule import ImageRule
from shards.tars.image_shards import write_shards
from shards.views.decode import decode_rgb, read_header

RULE = CompactRule(max_side=64, quality=90)


def picture(width: int, height: int, number: int = 0) -> Image.Image:
    """Smooth colours with some texture."""
    rng = stream(number, "picture")
    small = (rng.uniforms(4 * 5 * 3).reshape(4, 5, 3) * 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    noise = rng.uniforms(smooth.size).reshape(smooth.shape) * 16 - 8
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 98, "subsampling": 0} if format == "JPEG" else {}) | options)
    return buffer.getvalue()


def tree(root: Path) -> Path:
    for n in range(8):
        folder = root / ("ant" if n % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        format, suffix = (("JPEG", "jpg"), ("PNG", "png"))[n // 2 % 2]
        (folder / f"i{n}.{suffix}").write_bytes(encoded(picture(90 - 10 * n, 60, n), format))
    return root


def written(source: Path, dest: Path, compact: CompactRule | None = RULE, workers: int = 1) -> ShardIndex:
    *_, last = write_shards(source, dest, samples_per_shard=3, seed=0, workers=workers, rule=ImageRule(compact))
    assert last.index is not None
    return last.index


@pytest.mark.parametrize(("size", "expected"), [((128, 64), (64, 32)), ((64, 64), (64, 64)), ((1000, 1), (64, 1))])
def test_the_longest_side_is_bounded_and_the_shape_stays(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert reduced_size(*size, 64) == expected
    assert reduced_size(*size[::-1], 64) == expected[::-1]


def test_a_large_image_is_the_antialiased_reduction_of_its_pixels() -> None:
    """Pillow's bicubic of what `decode_rgb` gives, in a baseline JPEG with halved chroma."""
    data = encoded(picture(200, 100))
    small = compacted(data, RULE, "here")
    header = read_header(small, "here")
    assert (header.format, header.width, header.height, header.turbo) == ("JPEG", 64, 32, True)
    expected = Image.fromarray(decode_rgb(data, "here")).resize((64, 32), Image.Resampling.BICUBIC)
    assert np.abs(decode_rgb(small, "here").astype(int) - np.asarray(expected)).mean() < 4
    with Image.open(io.BytesIO(small)) as image:
        assert image.layer[0][1:3] == (2, 2) and image.layer[1][1:3] == (1, 1)  # type: ignore[attr-defined]
        assert not image.info.get("progressive")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_a_small_image_keeps_its_pixels_count_and_becomes_a_jpeg(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    small = compacted(encoded(picture(60, 40), format, **options), RULE, "here")
    header = read_header(small, "here")
    assert (header.format, header.width, header.height) == ("JPEG", 60, 40)


def test_a_jpeg_that_would_not_shrink_is_left_as_it_is() -> None:
    """Lossy once, not twice: what is compact stays the same bytes."""
    data = encoded(picture(300, 200), quality=60, subsampling="4:2:0")
    assert compacted(data, CompactRule(max_side=320), "here") is data
    large = compacted(encoded(picture(200, 100)), RULE, "here")
    assert compacted(large, RULE, "here") == large


def test_compact_shards_are_the_same_bytes_for_any_process_count_and_say_so_in_the_index(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    one, two = written(source, tmp_path / "one"), written(source, tmp_path / "two", workers=2)
    assert one.compact == two.compact == RULE and one.fingerprint == two.fingerprint
    with ShardReader(open_index(str(tmp_path / "one"))) as reader:
        for shard in range(one.num_shards):
            for row in range(one.num_rows(shard)):
                header = read_header(reader.image_bytes(shard, row), "here")
                assert header.format == "JPEG" and max(header.width, header.height) <= 64


def test_how_is_no_part_of_the_fingerprint_which_a_scan_of_the_bytes_finds_again(tmp_path: Path) -> None:
    index = written(tree(tmp_path / "in"), tmp_path / "out")
    assert replace(index, compact=None).fingerprint == index.fingerprint
    names = tmp_path / "classes.txt"
    names.write_text("ant\nbee")
    words = ["check-shards", str(tmp_path / "out"), "--overwrite", "--decode", "--class-names", str(names)]
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert open_index(str(tmp_path / "out")).fingerprint == index.fingerprint


def test_without_it_nothing_has_changed(tmp_path: Path) -> None:
    """The bytes of the files, an index without the field, a journal without the settings."""
    index = written(tree(tmp_path / "in"), tmp_path / "out", compact=None)
    assert index.compact is None
    assert b"compact" not in (tmp_path / "out" / "shards.index").read_bytes()
    settings = json.loads((tmp_path / "out" / ".make-shards.jsonl").read_text().splitlines()[0])
    assert set(settings) == {"seed", "samples_per_shard", "num_samples", "source_digest"}


def test_compact_and_other_shards_are_not_mixed_in_one_folder(tmp_path: Path) -> None:
    """The journal notices both ways: shards that are there were made by another rule."""
    source = tree(tmp_path / "in")
    written(source, tmp_path / "plain", compact=None)
    written(source, tmp_path / "compact")
    for folder, rule in (("plain", RULE), ("compact", None), ("compact", CompactRule(max_side=64, quality=80))):
        with pytest.raises(
            ShardError, match=r"(?s)of another source or other settings\n.*(max_side|quality): existing"
        ):
            written(source, tmp_path / folder, compact=rule)
    assert written(source, tmp_path / "compact").compact == RULE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quality", "90"], "only with --max-side"),
        (["--max-side", "8"], "max_side: expected at least 32"),
        (["--max-side", "500", "--quality", "0"], "quality: expected 1 to 95"),
        (["--max-side", "500", "--quality", "100"], "quality: expected 1 to 95"),
    ],
)
def test_wrong_rules_are_wrong_arguments(tmp_path: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["make-shards", str(tree(tmp_path / "in")), str(tmp_path / "out"), *words])
    assert result.exit_code == 2 and said in result.output


def test_the_command_makes_compact_shards(tmp_path: Path) -> None:
    words = ["make-shards", str(tree(tmp_path / "in")), str(tmp_path / "out"), "--max-side", "64", "--workers", "1"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0 and "compact: longest side 64, JPEG quality 90" in result.output


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    victim = next(source.rglob("*.jpg"))
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(ShardError, match=victim.name):
        written(source, tmp_path / "out")
