"""Whatever a file holds, a command goes on or says what is wrong: never a traceback, never more memory than it may."""

import contextlib
import json
import os
import resource
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cli import cli
from shards.documents import NotRegularError, checked, open_regular, parse_json, read_regular
from shards.errors import RunError, ShardError
from student.run.checkpoint import load_checkpoint
from student.run.run_events import Rejected
from tests.damage import DOCUMENTS, damaged
from tests.golden import SETS

ROOM_BYTES = 1 << 31


@contextmanager
def bounded_memory(room_bytes: int = ROOM_BYTES) -> Iterator[None]:
    """A number in a file that asks for more than 2 GiB is an error here, as it would be where memory is full."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "set"
    shutil.copytree(SETS[-1], folder)
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(folder / "image.png")
    with contextlib.chdir(folder):  # undamaged, everything succeeds; and what a command imports is there from now on
        assert {problem_of(words) for document in DOCUMENTS.values() for words in document.commands} == {""}
    return folder


def problem_of(words: tuple[str, ...]) -> str:
    """What is not as it must be about the way a command ends, "" for nothing."""
    result = CliRunner().invoke(cli, list(words))
    if result.exit_code == 0:
        return ""
    if (
        result.exit_code != 1
        or "defect" in result.output
        or "not enough memory" in result.output
        or "Traceback" in result.output
    ):
        return f"{' '.join(words)}: exit code {result.exit_code}: {result.output[-600:]}"
    error = result.output[max(result.output.find("error:"), 0) :]
    return "" if any(word.split("/")[0] in error for word in words[1:]) else f"names nothing: {error[-600:]}"


@pytest.mark.parametrize("kind", DOCUMENTS)
@settings(
    max_examples=int(os.environ.get("DAMAGE_EXAMPLES", "25")),
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_damaged_documents_are_refused_in_words(
    kind: str, golden: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DAMAGE_EXAMPLES=1000` draws more."""
    document = DOCUMENTS[kind]
    path = golden / document.path
    whole = path.read_bytes()
    monkeypatch.chdir(golden)
    value = damaged(document.load(whole, path), data.draw(st.randoms(use_true_random=False)))
    try:
        path.write_bytes(document.seal(value, whole, path))
        with bounded_memory():
            problems = [problem for words in document.commands if (problem := problem_of(words))]
        assert not problems, problems[0]
    finally:
        path.write_bytes(whole)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_manifest_is_passed_over_or_refused(golden: Path, data: st.DataObject) -> None:
    path = next((golden / "run/checkpoints").glob("*.json"))
    whole = path.read_bytes()
    value = damaged(parse_json(whole, path, error=RunError, advice=""), data.draw(st.randoms(use_true_random=False)))
    try:
        path.write_bytes(json.dumps(value).encode())
        found = load_checkpoint(path.parent, 12, identity={})
        assert isinstance(found, Rejected) or found[1].identity == {}
    except RunError as error:
        assert "belongs to another run" in str(error)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket", "loop"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """A FIFO would block for ever, /dev/zero would never end."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to(path)
    with pytest.raises(OSError):
        open_regular(path)
    assert threading.active_count() < 50


def test_a_file_that_no_buffer_can_be_had_for_is_no_bad_descriptor(tmp_path: Path) -> None:
    """What was closed twice hid the lack of memory, and might have closed a file of another thread."""
    (tmp_path / "x").write_bytes(b"data")
    with bounded_memory(1 << 28), pytest.raises(MemoryError):
        open_regular(tmp_path / "x", buffering=(1 << 31) - 1)


def test_documents_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # sparse: no disk, but ten gigabytes to whoever reads it
    with pytest.raises(NotRegularError, match="at most 1000 bytes, got 10737418240"):
        read_regular(path, most_bytes=1000)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100 + "]" * 100, "{", "9" * 5000, "\x00", '"\\ud800"x', "nul"])
def test_what_is_no_json_of_bounded_depth_is_refused_in_words(text: str) -> None:
    with pytest.raises(ShardError, match=r"here: expected JSON.*; again"):
        parse_json(text, "here", error=ShardError, advice="again")


def test_types_and_ranges_are_named_with_their_field() -> None:
    with pytest.raises(ShardError, match=r"here: \[1\]: expected `int`, got `str`; again"):
        checked([1, "x"], list[int], "here", error=ShardError, advice="again")
