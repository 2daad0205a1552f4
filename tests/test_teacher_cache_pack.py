"""Packed copies: the same content in few files, read by the same reader and by plain zarr, and never changed."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result

from cli import cli
from shards.errors import CacheError
from teacher_cache.inspect.status import cache_status
from teacher_cache.inspect.verify import verify_digests
from teacher_cache.publish.packing import pack_cache
from teacher_cache.store.cache import TeacherCache
from tests.cache_maker import make_cache, objects_of

ROWS, VIEWS = (7, 5, 6), 12


def packed(source: Path, destination: Path | str, num_views: int = 0) -> list[int]:
    """Pack; the shards that were written."""
    with TeacherCache.open(source) as opened:
        return [event.num_copied for event in pack_cache(opened, str(destination), num_views or opened.num_views)]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def require_same_content(one: Path | str, other: Path | str, num_blocks: int | None = None) -> None:
    with TeacherCache.open(one) as a, TeacherCache.open(other) as b:
        assert a.header.identity == b.header.identity and a.spec.fingerprint == b.spec.fingerprint
        np.testing.assert_array_equal(a.ledger()[:num_blocks], b.ledger())
        for unit in np.ndindex(*b.ledger().shape):
            first, second = a.read_unit(*unit), b.read_unit(*unit)
            assert first.keys() == second.keys()
            for name, array in first.items():
                assert array.tobytes() == second[name].tobytes() and array.dtype == second[name].dtype, name


@pytest.mark.parametrize("kind", ["hard", "topk", "dense8", "dense"])
def test_a_packed_cache_holds_the_same_in_at_most_ten_files_a_shard(tmp_path: Path, kind: str) -> None:
    make_cache(tmp_path / "a", kind=kind, rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "b")
    require_same_content(tmp_path / "a", tmp_path / "b")
    chunks = [name for name in objects_of(tmp_path / "b") if "/c/" in name]
    assert len([name for name in chunks if not name.startswith(("ledger", "tail_basis"))]) <= 10 * len(ROWS)
    with TeacherCache.open(tmp_path / "b") as cache:
        assert not [finding for finding in verify_digests(cache) if finding.problem]
        group = zarr.open_group(str(tmp_path / "b"), mode="r")
        for name in cache.row_fields:
            plain = np.asarray(group[name][:])  # type: ignore[index]
            for block, shard in np.ndindex(*cache.ledger().shape):
                views = slice(block * cache.views_per_unit, (block + 1) * cache.views_per_unit)
                rows = int(cache.rows_S[shard])
                np.testing.assert_array_equal(plain[views, shard, :rows], cache.read_unit(block, shard)[name])


def test_a_packed_cache_of_the_first_views_is_a_cache_of_these(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "b", 6)
    require_same_content(tmp_path / "a", tmp_path / "b", 2)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_stopped_pack_goes_on_and_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path, written: int) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "whole")
    with TeacherCache.open(tmp_path / "a") as opened:
        for event in pack_cache(opened, str(tmp_path / "b"), VIEWS):
            if event.num_copied == written * opened.num_view_blocks:
                break
    assert not TeacherCache.exists(tmp_path / "b")  # the root is written last
    assert packed(tmp_path / "a", tmp_path / "b")[-1] == (len(ROWS) - written) * VIEWS // 3
    names = objects_of(tmp_path / "whole")
    assert names == objects_of(tmp_path / "b")
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert packed(tmp_path / "a", tmp_path / "b")[-1] == 0


def test_what_would_change_a_packed_cache_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CacheError, match=r"packed.*copy-cache"):
        TeacherCache.open(tmp_path / "b", writable=True)
    for words in (("verify-cache", tmp_path / "b", "--repair"), ("copy-cache", tmp_path / "a", tmp_path / "b")):
        answer = run(*words)
        assert answer.exit_code != 0 and "packed" in answer.output, words
    make_cache(tmp_path / "c", rows=ROWS, num_views=VIEWS)
    assert "without --pack" in run("copy-cache", tmp_path / "a", tmp_path / "c", "--pack").output
    for words in (("--shards", "0"), ("--views", "3-5"), ("--bytes", "24")):
        answer = run("copy-cache", tmp_path / "a", tmp_path / "d", "--pack", *words)
        assert answer.exit_code == 2 and words[0] in answer.output and not (tmp_path / "d").exists()


def test_an_unfinished_cache_is_not_packed(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS, missing=((1, 0),))
    answer = run("copy-cache", tmp_path / "a", tmp_path / "b", "--pack")
    assert answer.exit_code == 1 and "1 of 12" in answer.output and not (tmp_path / "b").exists()


def test_a_copy_of_a_packed_cache_is_the_original(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "b")
    assert run("copy-cache", tmp_path / "b", tmp_path / "c").exit_code == 0
    names = objects_of(tmp_path / "a")
    assert names == objects_of(tmp_path / "c")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in names)


def test_status_and_verify_of_a_packed_cache(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "b")
    for command in ("cache-status", "verify-cache"):
        answer = run(command, tmp_path / "b")
        assert answer.exit_code == 0, answer.output
    with TeacherCache.open(tmp_path / "a") as a, TeacherCache.open(tmp_path / "b") as b:
        assert cache_status(b).done_BS.all()
        plain, small = sum(a.unit_bytes(0, 0).values()), sum(b.unit_bytes(0, 0).values())
        assert small < 1.5 * plain


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped"])
def test_damage_of_any_object_is_named(tmp_path: Path, damage: str) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "b")
    for name in objects_of(tmp_path / "b"):
        path = tmp_path / "b" / name
        whole = path.read_bytes()
        changed = {"cut": whole[:-3], "empty": b"", "gone": None, "flipped": bytes([whole[0] ^ 1]) + whole[1:]}[damage]
        if changed is None:
            path.unlink()
        else:
            path.write_bytes(changed)
        with pytest.raises(CacheError, match=name.split("/")[0]), TeacherCache.open(tmp_path / "b") as cache:
            for unit in np.ndindex(*cache.ledger().shape):
                cache.read_unit(*unit)
        path.write_bytes(whole)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with or without ranges, and counts what it sends of the arrays."""

    ranges: ClassVar[bool] = True
    lies: ClassVar[bool] = False
    sent: ClassVar[int] = 0

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if "/c/" not in self.path or not path.is_file() or wanted is None or not self.ranges:
            return super().do_GET()
        data = path.read_bytes()
        part = data[int(wanted[1]) : int(wanted[2]) + 1] + bytes(100) * self.lies
        type(self).sent += len(part)
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a folder `b`."""
    _Handler.ranges, _Handler.lies, _Handler.sent = True, False, 0
    handler = functools.partial(_Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/b"
        listening.shutdown()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_packed_cache_is_read_from_a_server(tmp_path: Path, server: str, ranges: bool) -> None:
    """Of an object that holds all views of a shard, a reader of one unit fetches the index and that unit."""
    make_cache(tmp_path / "a", rows=(70, 50), num_views=30)
    packed(tmp_path / "a", tmp_path / "b")
    _Handler.ranges = ranges
    require_same_content(tmp_path / "a", server)
    if ranges:
        _Handler.sent = 0
        with TeacherCache.open(server) as cache:
            cache.read_unit(4, 1)
            whole = sum(len((tmp_path / "b" / f"{item.name}/c/0/1" / rest).read_bytes()) for item in cache.units.layouts
                        for rest in ["/".join("0" * (len(item.shape) - 2))])  # fmt: skip
        assert _Handler.sent < whole / 2


def test_a_server_that_sends_more_than_the_part_is_cut_off(tmp_path: Path, server: str) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", tmp_path / "b")
    _Handler.lies = True
    with TeacherCache.open(server) as cache, pytest.raises(CacheError, match="expected at most"):
        cache.read_unit(0, 0)


def test_a_packed_cache_is_written_to_and_read_from_an_object_store(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    packed(tmp_path / "a", "memory://packed-cache")
    require_same_content(tmp_path / "a", "memory://packed-cache")


def test_what_a_kill_leaves_of_a_new_cache_is_no_foreign_folder(tmp_path: Path) -> None:
    """A kill while the metadata of an array, or the root, is written leaves a file under its temporary name."""
    make_cache(tmp_path / "a", rows=ROWS, num_views=VIEWS)
    for number, left in enumerate((".zarr.json.7-7.partial", "class_index/.zarr.json.7-7.partial")):
        for flags in ((), ("--pack",)):
            copy = tmp_path / f"{number}{len(flags)}"
            (copy / left).parent.mkdir(parents=True)
            (copy / left).write_bytes(b"{")
            answer = run("copy-cache", tmp_path / "a", copy, *flags)
            assert answer.exit_code == 0, answer.output
