"""docs/reliability.md says what the code does: its numbers, the tests that it names, the one door to pickles."""

import ast
import re
from pathlib import Path

import pytest

from shards.documents import _MOST_DEPTH, MOST_BYTES
from shards.index.remote import STALL_S
from shards.index.server_rules import TRIES, pauses
from shards.index.sources import _MAX_SHARDS
from shards.index.transfer import LEAST_BYTES_PER_S
from shards.pool.workers import SILENT_S
from shards.tars.tar import MOST_MEMBER_BYTES
from shards.views.decode import MAX_PIXELS, MOST_SCANS
from student.run.run_files import MOST_METRICS_BYTES
from teacher_cache.store.place import DEFAULT_TIMEOUT_S

ROOT = Path(__file__).parent.parent
TEXT = " ".join((ROOT / "docs" / "reliability.md").read_text().split())

NUMBERS = [
    (r"hangs \(a disk, a lock\) \| an error at once, or after (\d+) s", SILENT_S),
    (r"stalls \| (\d+) attempts", TRIES),
    (r"with pauses of ([\d.]+), [\d.]+ and [\d.]+ s", pauses()[0]),
    (r"with pauses of [\d.]+, ([\d.]+) and [\d.]+ s", pauses()[1]),
    (r"with pauses of [\d.]+, [\d.]+ and ([\d.]+) s", pauses()[2]),
    (r"an error below (\d+) kB/s over a minute", LEAST_BYTES_PER_S / 1024),
    (r"below 4 kB/s over a minute()", STALL_S / 60),
    (r"every object has (\d+) s and a largest size", DEFAULT_TIMEOUT_S),
    (r"metadata files have at most (\d+) MB", MOST_BYTES / 2**20),
    (r"`metrics.jsonl` (\d+) GB", MOST_METRICS_BYTES / 2**30),
    (r"members of a tar (\d+) MB", MOST_MEMBER_BYTES / 2**20),
    (r"braces a million shards()", _MAX_SHARDS / 1_000_000),
    (r"JSON (\d+) levels", _MOST_DEPTH),
    (r"an image may have at most ([\d,]+) pixels", MAX_PIXELS),
    (r"a JPEG at most (\d+) scans", MOST_SCANS),
]
"""What the page says, and the number that the code has; an empty group stands for 1 in words."""


@pytest.mark.parametrize(("said", "value"), NUMBERS)
def test_every_number_of_the_page_is_that_of_the_code(said: str, value: float) -> None:
    match = re.search(said, TEXT)
    assert match is not None, said
    assert float((match[1] or "1").replace(",", "")) == value


def test_every_test_that_the_page_names_exists() -> None:
    named = {*re.findall(r"\btest_\w+", TEXT), *re.findall(r"(?<=tests\.)\w+", TEXT)}
    assert len(named) > 15 and not [name for name in named if not (ROOT / "tests" / f"{name}.py").is_file()]
    assert not [
        name for name in re.findall(r"benchmarks\.(\w+)", TEXT) if not (ROOT / f"benchmarks/{name}.py").is_file()
    ]


def test_files_are_unpickled_by_torch_alone_and_without_code() -> None:
    """Processes that were forked from each other send each other pickles; files and servers send none."""
    found = []
    for path in (path for package in ("shards", "teacher_cache", "student") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if {"pickle", "marshal", "shelve", "dill", "joblib", "yaml"} & set(names) and path.parent.name != "pool":
                found.append(f"{path}:{node.lineno}: imports {names}")
            if not isinstance(node, ast.Call):
                continue
            words = {word.arg: word.value for word in node.keywords}
            called = ast.unparse(node.func)
            weights_only = words.get("weights_only")
            safe = isinstance(weights_only, ast.Constant) and weights_only.value is True
            if called in ("eval", "exec", "np.load") or (called == "torch.load" and not safe) or "shell" in words:
                found.append(f"{path}:{node.lineno}: calls {called}")
    assert not found, "\n".join(found)
