"""Names that others chose reach no terminal, page or spreadsheet as a command: all commands, all that they write."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cli import COMMANDS, cli
from shards.text.escapes import csv_cell, markdown, markdown_code, one_line, visible
from tests.damage import obeyed
from tests.test_layering import ROOT, SOURCES
from tests.test_own_data import SMALL

EVIL = "=1\x1b]0;own\x07\x9b2J\u202e$x$|`<b>[x](y)"
"""A title, a cleared screen, text turned round, a formula twice, a table's border, code, HTML and a link."""


def run(*words: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert not obeyed(result.output), f"{words[0]}: {result.output!r}"
    return result


def rename_classes(weights: Path, *names: str) -> None:
    """Give a weights file other class names, as somebody who edits it can."""
    with safe_open(weights, "np") as file:
        metadata = {key: json.loads(text) if text[0] == "{" else text for key, text in file.metadata().items()}
    for value in metadata.values():
        if isinstance(value, dict):
            value["class_names"] = names
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    save_file(load_file(weights), weights, texts)


def without_code(page: str) -> str:
    """A page without YAML, code blocks and code spans, where HTML is only text."""
    page = re.sub(r"\A---\n[\s\S]*?\n---\n|^    .*$|^```[\s\S]*?^```", "", page, flags=re.M)
    return re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", page)


@pytest.mark.slow
def test_all_commands_and_all_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job from photos to a report in a folder, with classes, files and runs of hostile names."""
    rng = np.random.default_rng(0)
    home = tmp_path / EVIL
    for n in range(40):
        image = cv2.resize(rng.integers(128 * (n % 2), 128 * (n % 2) + 128, (4, 5, 3), dtype=np.uint8), (48, 40))
        path = home / "photos" / ("cat" if n % 2 else "dog") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (home / f"{EVIL}.png").write_bytes(path.read_bytes())
    monkeypatch.chdir(home)
    shards, cache, weights = ("--shards", "s"), f"c{EVIL}.zarr", f"r{EVIL}/weights.safetensors"
    small = ("--model", "deit_tiny_patch16_224", *SMALL)
    student = ("--cache", cache, "--distill", "soft", *small)
    walked = set()
    for words in (
        ("make-shards", "photos", "s", "--workers", "1"),
        ("check-shards", "s", "--workers", "1"),
        ("train-teacher", *shards, "--out", f"t{EVIL}", "--size", "32", *small),
        ("cache-teacher", *shards, "--cache", cache, "--views", "3", "--size", "32", "--workers", "0",
         "--teacher-weights", f"t{EVIL}/weights.safetensors"),
        ("plan-cache", *shards, "--views", "3", "--size", "32", "--workers", "0",
         "--seconds", "0.2", "--teacher-weights", f"t{EVIL}/weights.safetensors"),
        ("check-machine", "--cache", cache),
        ("show-views", *shards, "--cache", cache, "--out", "views.png"),
        ("train-student", *shards, "--val-shards", "s", "--out", f"r{EVIL}", *student),
        ("ablate", *shards, "--val-shards", "s", "--out", f"a{EVIL}", "--tau", "1,2", *student),
        ("evaluate", *shards, "--weights", weights, "--workers", "0"),
        ("predict", f"{EVIL}.png", "photos", "--weights", weights),
        ("predict", f"{EVIL}.png", "photos", "--weights", weights, "--json"),
        ("export", weights, f"out{EVIL}.safetensors"),
        ("cache-status", cache, "--fidelity", "--png", "status.png"),
        ("verify-cache", cache, "--deep", *shards),
        ("copy-cache", cache, f"copy{EVIL}.zarr", "--card"),
        ("cost", "--cache", cache),
        ("report", f"a{EVIL}", "--png", "figures", "--csv", "sweep.csv"),
        ("report", f"r{EVIL}", "--html", "run.html", "--png", "figures", "--csv", "run.csv"),
        ("models",),
        ("recipes",),
    ):  # fmt: skip
        if words[0] == "predict":
            rename_classes(Path(weights), f"cat{EVIL}", f"dog\n{EVIL}")
        result = run(*words)
        walked.add(words[0])
        assert result.exit_code == 0, f"{words}: {result.output}"
        if "--json" in words:
            names = {each["name"] for line in result.output.splitlines() for each in json.loads(line)["classes"]}
            assert names == {f"cat{EVIL}", f"dog\n{EVIL}"}, "JSON says the names as they are"
    assert walked == set(COMMANDS) - {"distill"}  # which runs these
    pages = [path for path in home.rglob("*") if path.suffix in (".md", ".html", ".csv") and path.is_file()]
    assert len(pages) >= 6
    for path in pages:
        text = path.read_text()
        assert not obeyed(text), path
        assert path.suffix == ".csv" or "<b>[x]" not in without_code(text), path
        if path.suffix == ".csv":
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            assert not [cell for cell in cells if cell.startswith(("=", "@", "\t", "\r"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_refusals_quote_names_and_flags_without_obeying_them(command: str, tmp_path: Path) -> None:
    """What a shell's * puts on a command line, where it is wrong."""
    evil = tmp_path / EVIL
    for words in ((evil,), (evil, evil), ("--shards", evil), ("--cache", evil), (f"--{EVIL}",), ("--workers", EVIL)):
        assert run(command, *words).exit_code != 0 or command in ("cost", "check-machine")
        run("--debug", command, *words)


def test_a_line_end_in_a_name_writes_no_line_of_its_own() -> None:
    assert one_line("cat\n  99 %  dog") == "cat\\u000a  99 %  dog"


NAMES = (EVIL, "\udcff.jpg", "a\U000e0041b", "\r\n", "\u2028", "日本語", "naïve ☃", "नमस्\u200dते")


@pytest.mark.parametrize("name", NAMES)
def test_escapes_are_those_of_json_and_lose_nothing(name: str) -> None:
    assert not obeyed(visible(name).replace("\u200d", ""))
    assert json.loads(visible(json.dumps({"name": name}, ensure_ascii=False)))["name"] == name
    assert "\n" not in one_line(name)


@pytest.mark.parametrize(
    ("value", "cell"),
    [("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("-2+3", "'-2+3"), ("-2.5", "-2.5"), (-1, -1), ("a", "a"),
     ("\t=1", "\\u0009=1"), ("soft-l0.9", "soft-l0.9"), ("", "")],
)  # fmt: skip
def test_no_cell_is_a_formula_and_numbers_stay(value: object, cell: object) -> None:
    assert csv_cell(value) == cell


def test_markdown_shows_names_as_they_are() -> None:
    assert markdown("deit_tiny_patch16 [x](y) <b>") == r"deit_tiny_patch16 \[x\](y) \<b\>"
    assert markdown_code("a`b``c|") == r"```a`b``c\|```" and markdown_code("`") == "`` ` ``"


def test_one_module_prints_and_it_escapes() -> None:
    """A second door would be one where escaping is forgotten; the transfer's child speaks JSON to its parent."""
    users = {path.relative_to(ROOT).as_posix() for path in SOURCES
             if re.search(r"click\.s?echo|sys\.std(out|err)\.write|print_exc\(", path.read_text())}  # fmt: skip
    assert users == {"shards/console.py", "shards/index/transfer.py"}
