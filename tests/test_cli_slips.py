"""Slips that every option of every command could meet: a value left empty, a number with digits too many."""

import json
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from cli import COMMANDS, cli
from shards.commands.flags import CACHE as CACHE_PLACE
from shards.commands.flags import PATH
from shards.own_folder import CACHE_KIND
from student.recipe.student_recipe import StudentRecipe
from student.run.export import ExportInfo, export_weights
from tests.command_line import run
from tests.golden import SETS

HUGE = str(10**12)
ABLATE = ["ablate", "--val-shards", "{set}/val", "--cache", "{set}/dense.zarr", "--model", "resnet18"]
CACHE = ["cache-teacher", "--cache", "{tmp}/c.zarr", "--teacher", "resnet18"]
PARAMS = [
    (name, param)
    for name in COMMANDS
    if (command := cli.get_command(click.Context(cli, info_name="deit-cache"), name)) is not None
    for param in command.params
]
"""Every option and argument, with its command."""


def spelled(name: str, param: click.Parameter, value: str) -> list[str]:
    return [name, value] if isinstance(param, click.Argument) else [name, param.opts[0], value]


def test_no_value_is_empty() -> None:
    """`--model "$MODEL"` with the variable unset is a slip, and never means the default."""
    taken = []
    for name, param in PARAMS:
        if isinstance(param, click.Option) and param.is_flag:
            continue
        result = run(*spelled(name, param, ""))
        spellings = (*param.opts, param.human_readable_name.upper())
        if result.exit_code != 2 or not any(spelling in result.output for spelling in spellings):
            taken.append((name, param.opts[0], result.output.splitlines()[-1:]))
    assert not taken


@pytest.mark.parametrize("long", ["x" * 256, "a/" + "é" * 128 + "/b", "x/" * 2048], ids=["name", "folder", "path"])
def test_no_path_is_longer_than_a_file_system_takes(long: str) -> None:
    """The system's "file name too long" does not say which option it was."""
    taken = []
    for name, param in PARAMS:
        if param.type in (PATH, CACHE_PLACE):
            result = run(*spelled(name, param, long))
            spellings = (*param.opts, param.human_readable_name.upper())
            named = any(spelling in result.output for spelling in spellings) and "bytes" in result.output
            if result.exit_code != 2 or not named:
                taken.append((name, param.opts[0], result.output.splitlines()[-1:]))
    assert not taken
    refused = run("check-shards", long)
    assert refused.exit_code == 2 and "shards: expected " in refused.output and "bytes" in refused.output


@pytest.mark.parametrize("place", ["x" * 256, "x/" * 2048, "a\\u0000b"], ids=["name", "path", "nul"])
@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([*CACHE, "--views", "2", "--teacher", "local-dir:{place}"], "--teacher local-dir"),
        (["train-student", "--distill", "none", "--out", "{tmp}/s", "--pretrained", "{place}"], "--pretrained"),
        (["train-student", "--distill", "none", "--out", "{tmp}/s", "--set", "init_weights={place}"], "init_weights"),
        (["train-student", "--distill", "none", "--out", "{tmp}/s", "--config", "{tmp}/c.toml"], "init_weights"),
        ([*CACHE, "--views", "2", "--teacher-classes", "{place}"], "--teacher-classes"),
        (["report", "{set}/run", "--html", "{tmp}/r.html", "--teacher", "{place}"], "teacher"),
    ],
)
def test_a_text_that_may_be_a_path_is_one_that_file_systems_take(
    words: list[str], named: str, place: str, tmp_path: Path
) -> None:
    """A NUL cannot be typed in a shell; a file of settings may hold one, or a program that starts commands."""
    (tmp_path / "c.toml").write_text(f'finetune = true\ninit_weights = "{place}"\n')
    values = {"tmp": tmp_path, "set": SETS[0], "place": json.loads(f'"{place}"')}
    shards = [] if words[0] == "report" else ["--shards", SETS[0] / "train"]
    fine = ["--set", "finetune=true", "--model", "resnet18"] if any("init_weights" in word for word in words) else []
    result = run(*(word.format(**values) for word in words), *fine, *shards)
    assert result.exit_code == 2 and f"{named}: expected " in result.output, result.output
    assert ("bytes" if "x" in place else "NUL") in result.output and "\0" not in result.output, result.output


def test_a_count_has_a_bound_and_the_refusal_names_it() -> None:
    """No count is larger than the 31 bits in which views and rows are stored; seeds have 63."""
    taken = []
    for name, param in PARAMS:
        if not isinstance(param.type, click.IntRange) or "seed" in str(param.name):
            continue
        result = run(*spelled(name, param, HUGE))
        if result.exit_code != 2 or param.opts[0] not in result.output or HUGE not in result.output:
            taken.append((name, param.opts[0], result.output.splitlines()[-1:]))
    assert not taken


def test_a_seed_has_63_bits() -> None:
    seeds = [(name, param) for name, param in PARAMS if (param.name or "").endswith("seed")]
    assert len(seeds) > 6 and all(isinstance(p.type, click.IntRange) and p.type.max == 2**63 - 1 for _, p in seeds)
    assert not [name for name, param in seeds if "too large" in run(*spelled(name, param, str(2**63 - 1))).output]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["show-views", "--out", "{tmp}/x.png", "--views", "1000000"], "--views"),
        (["show-views", "--out", "{tmp}/x.png", "--cache", "{set}/dense.zarr", "--first-view", "4"], "0 to 3"),
        (
            [*CACHE, "--views", "1000000000"],
            "expected at most",
        ),
        (["plan-cache", "--teacher", "resnet18", "--views", "1000000000"], "expected at most"),
        ([*ABLATE, "--out", "{tmp}/s", "--seeds", "1000000"], "--seeds"),
    ],
)
def test_a_number_that_no_machine_can_serve_is_refused(words: list[str], expected: str, tmp_path: Path) -> None:
    filled = [word.format(tmp=tmp_path, set=SETS[0]) for word in (*words, "--shards", "{set}/train")]
    result = run(*filled)
    assert result.exit_code == 2 and expected in result.output, result.output
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_into_a_cache(tmp_path: Path) -> None:
    """A folder inside a cache would be part of it: of its copies, and of what a repair removes."""
    cache = tmp_path / "made.zarr"
    cache.mkdir()
    (cache / "zarr.json").write_text(json.dumps({"attributes": {"kind": CACHE_KIND}}))
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    shards = ["--shards", SETS[0] / "train"]
    for words in (
        ["copy-cache", SETS[0] / "dense.zarr", cache / "in"],
        ["copy-cache", SETS[0] / "dense.zarr", cache / "a" / "in", "--pack"],
        ["cache-teacher", *shards, "--cache", cache / "in", "--teacher", "resnet18", "--views", "2"],
        ["train-student", *shards, "--cache", SETS[0] / "dense.zarr", "--out", cache / "in"],
        ["train-teacher", *shards, "--model", "resnet18", "--out", cache / "in"],
        ["make-shards", tmp_path / "photos", cache / "in"],
    ):
        result = run(*words)
        assert result.exit_code == 2 and str(cache) in result.output and "inside a cache" in result.output, (
            result.output
        )
    assert [entry.name for entry in cache.iterdir()] == ["zarr.json"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train-student", "--shards", "{set}/train", "--out", "{tmp}/o", "--cache", "{set}/run"], "run"),
        (["verify-cache", "{set}/run"], "run"),
        (["cache-status", "{set}/run"], "run"),
        (["copy-cache", "{set}/run", "{tmp}/copy"], "run"),
        (["train-student", "--shards", "{set}/train", "--out", "{tmp}/o", "--cache", "{set}/train"], "shards"),
        (["cache-status", "{set}/train"], "shards"),
    ],
)
def test_a_folder_of_another_kind_is_called_what_it_is(words: list[str], expected: str, tmp_path: Path) -> None:
    """With what to type instead, which can be typed."""
    sentences = {
        "run": "{set}/run: a run, not a teacher cache: give the cache that it was trained with; to let its network "
        "teach, make a cache with cache-teacher --teacher-weights {set}/run --cache NEW",
        "shards": "{set}/train: shards, not a teacher cache: they are given by --shards; make a cache of them "
        "with cache-teacher --shards {set}/train --cache NEW",
    }
    result = run(*(word.format(tmp=tmp_path, set=SETS[0]) for word in words))
    assert result.exit_code == 1, result.output
    assert sentences[expected].format(set=SETS[0]) in " ".join(result.output.split()), result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cache-teacher", "--cache", "{tmp}/c.zarr", "--views", "2", "--teacher"], "--teacher-weights {path}"),
        (["plan-cache", "--views", "2", "--teacher"], "--teacher-weights {path}"),
        (["train-teacher", "--out", "{tmp}/t", "--pretrained"], "--model NAME --init-weights {path}"),
        (["train-teacher", "--out", "{tmp}/t", "--model"], "--model NAME --init-weights {path}"),
        (["train-student", "--distill", "none", "--out", "{tmp}/s", "--model"], "--model NAME --pretrained {path}"),
    ],
)
@pytest.mark.parametrize("path", [SETS[0] / "run", SETS[0] / "teacher.safetensors"])
def test_a_path_in_the_place_of_a_model_is_sent_where_it_belongs(
    words: list[str], expected: str, path: Path, tmp_path: Path
) -> None:
    shards = ["--shards", str(SETS[0] / "train")]
    result = run(*(word.format(tmp=tmp_path) for word in words), path, *shards)
    assert result.exit_code == 2 and expected.format(path=path) in result.output, result.output


def test_a_student_that_only_this_project_names_is_sent_to_export(tmp_path: Path) -> None:
    """`small_cnn`, the default student of small sets, as the next teacher."""
    recipe, half = StudentRecipe(model="small_cnn", image_size=32), (0.5, 0.5, 0.5)
    info = ExportInfo(recipe=recipe, mean=half, std=half, num_classes=2, fingerprints={}, metrics={"top1": 50.0})
    save = tmp_path / "weights.safetensors"
    export_weights(torch.nn.Linear(2, 2), save, info)
    result = run(
        "cache-teacher", "--shards", SETS[0] / "train", "--cache", tmp_path / "c.zarr", "--teacher-weights", save,
        "--views", "2",
    )  # fmt: skip
    assert result.exit_code == 2 and f"--teacher-weights {save}" in result.output, result.output
    assert "'small_cnn'" in result.output and f"export {save} FOLDER" in result.output


def test_a_list_of_class_names_of_the_wrong_length_is_named(tmp_path: Path) -> None:
    """The file is at fault, not the folders, and not the teacher."""
    names, teacher = tmp_path / "names.txt", SETS[0] / "teacher.safetensors"
    names.write_text("one\n")
    cache = ["cache-teacher", "--shards", SETS[0] / "train", "--cache", tmp_path / "c.zarr", "--views", "2"]
    shards = ["make-shards", SETS[0], tmp_path / "out", "--class-names", names]
    for words in (shards, [*cache, "--teacher", "resnet10t", "--teacher-weights", teacher, "--teacher-classes", names]):
        result = run(*words)
        assert result.exit_code == 2 and f"{names}: expected at least two" in result.output, result.output
    names.write_text("one\ntwo\nthree\n")
    result = run(*cache, "--teacher-weights", SETS[0] / "run", "--teacher-classes", names)
    assert result.exit_code == 2 and f"{names}: expected 100 names" in result.output, result.output


RANKS = {"torchrun": {"RANK": "1", "WORLD_SIZE": "4"}, "srun": {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}}
RANKS["srun"]["SLURM_STEP_ID"] = "0"
ARRAY = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("words", "in_array"),
    [
        (["cache-teacher", "--cache", "{tmp}/c", "--views", "2"], True),
        (["train-teacher", "--out", "{tmp}/t", "--model", "resnet18"], False),
        (["train-student", "--out", "{tmp}/s", "--distill", "none"], False),
        (["evaluate", "--weights", "{set}/run"], False),
        ([*ABLATE, "--out", "{tmp}/a"], False),
        ([*ABLATE, "--out", "{tmp}/a", "--spread"], True),
        (["show-views", "--out", "{tmp}/v.png"], None),
    ],
)
def test_an_error_says_which_of_several_ranks_has_it(
    words: list[str], in_array: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of an array are ranks of the commands that share a list; of others each is a run of its own."""
    filled = [word.format(tmp=tmp_path, set=SETS[0]) for word in (*words, "--shards", "{tmp}/nope")]

    def name_in(environ: dict[str, str]) -> str:
        with monkeypatch.context() as patch:
            for variable, value in environ.items():
                patch.setenv(variable, value)
            last = run(*filled).output.splitlines()[-1]
        assert last.startswith("error: "), last
        return "rank 1 of 4: " if last.startswith("error: rank 1 of 4: ") else ""

    assert name_in({}) == "" and name_in({"RANK": "x", "WORLD_SIZE": "4"}) == ""
    for environ in RANKS.values():
        assert name_in(environ) == ("" if in_array is None else "rank 1 of 4: ")
    assert name_in(ARRAY) == ("rank 1 of 4: " if in_array else "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cache-status", "--cache", "c"], "No such option '--cache'. Type CACHE without a flag"),
        (["verify-cache", "--cache=c"], "Type CACHE without a flag"),
        (["check-shards", "--shards", "s"], "Type SHARDS without a flag"),
        (["make-shards", "photos", "--out", "d"], "Type DEST without a flag"),
        (["make-shards", "--source", "photos", "d"], "Type SOURCE without a flag"),
        (["copy-cache", "a", "--out", "b"], "Type DESTINATION without a flag"),
        (["export", "--weights", "runs/soft"], "Type WEIGHTS without a flag"),
        (["report", "--run", "runs/soft"], "Type RUNS without a flag"),
        (["report", "runs/soft", "--out", "r.html"], "Type --html"),
        (["distill", "--data", "photos"], "Type PHOTOS without a flag"),
        (["recipes", "--recipe", "deit"], "Type NAME without a flag"),
        (["train-student", "--data", "d"], "Type --shards"),
        (["train-student", "--val", "d"], "Type --val-shards"),
        (["train-student", "--output_dir", "d"], "Type --out"),
        (["train-student", "--lr", "0.1"], "Type --set lr=VALUE"),
        (["train-student", "--weight-decay", "0.1"], "Type --set weight_decay=VALUE"),
        (["train-student", "--learning-rate", "0.1"], "Type --set lr=VALUE"),
        (["train-student", "--temperature", "2"], "Type --tau"),
        (["train-student", "--num-workers", "2"], "Type --workers"),
        (["train-teacher", "--teacher", "resnet18"], "Type --pretrained"),
        (["cache-teacher", "--out", "c"], "Type --cache"),
        (["evaluate", "--run", "r"], "Type --weights"),
    ],
)
def test_an_option_of_another_spelling_is_sent_to_that_of_the_command(words: list[str], expected: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and expected in result.output, result.output


def test_no_unknown_option_is_sent_to_help_or_to_one_that_is_not_there() -> None:
    """The options of all commands, typed behind each one that does not have them."""
    options = {spelling for _, param in PARAMS for spelling in param.opts if spelling.startswith("--")}
    wrong = []
    for name in COMMANDS:
        own = {spelling for command, param in PARAMS for spelling in param.opts if command == name}
        for option in sorted(options - own):
            said = run(name, option).output.splitlines()[-1]
            advised = {word.rstrip(",") for word in said.split() if word.startswith("--")}
            if not said.startswith(f"Error: No such option '{option}'") or not advised <= own:
                wrong.append((name, option, said))
    assert not wrong


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ablate", "--lambda", "0", "0.5", "1"], "--lambda: separate the values by commas, without blanks: 0,0.5,1"),
        (["train-student", "--lambda", "0", "1"], "--lambda: expected one value, got 0 1"),
        (["check-shards", "a-0.tar", "a-1.tar"], "Give the folder of the tars, or a range in quotes such as"),
        (["train-student", "--shards", "a-0.tar", "a-1.tar"], "Give the folder of the tars, or a range in quotes"),
        (["make-shards", "{tmp}/my", "photos", "d"], "Put the path in quotes: '{tmp}/my photos'"),
        (["distill", "photos", "work"], "Missing option '--out'. Type --out work"),
    ],
)
def test_a_word_too_many_is_answered_with_what_to_type(words: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "my photos").mkdir()
    required = {"ablate": ("shards", "val-shards", "cache", "out"), "train-student": ("shards", "cache", "out")}
    missing = [word for name in required.get(words[0], ()) if f"--{name}" not in words for word in (f"--{name}", "x")]
    result = run(words[0], *missing, *(word.format(tmp=tmp_path) for word in words[1:]))
    assert result.exit_code == 2 and expected.format(tmp=tmp_path) in " ".join(result.output.split()), result.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train-student", "--lambda", "0,5"], "Write a decimal point: 0.5"),
        (["make-shards", "a", "b", "--split", "20%"], "Write the share as a number from 0 to 1: 0.2"),
        (["make-shards", "a", "b", "--split", "20"], "Write the share as a number from 0 to 1: 0.2"),
        (["train-student", "--epochs", "1e3"], "Write 1000"),
        (["train-student", "--epochs", "1e300"], "'1e300' is not a whole number."),
        (["train-student", "--epochs", "10.0"], "Write 10"),
        (["cache-teacher", "--views", "1,000"], "Write 1000"),
        (["train-student", "--epochs", "ten"], "'ten' is not a whole number"),
    ],
)
def test_a_number_in_another_notation_is_answered_with_this_one(words: list[str], expected: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and expected in " ".join(result.output.split()), result.output
    assert "0" * 9 not in result.output, "nobody counts so many digits"


@pytest.mark.parametrize(
    "words",
    [
        ["distill", *(f"photos/{n:05}.jpg" for n in range(3000)), "--out", "work"],
        ["predict", *(f"photos/{n:05}.jpg" for n in range(3000))],
        ["make-shards", "a", "b", "c" * 300, "d" * 5000],
        ["evaluate", "e" * 300],
        ["evaluate", "f/" * 3000, "--shards", "s"],
    ],
    ids=lambda words: f"{words[0]} {len(words)}",
)
def test_words_that_can_be_no_path_are_a_slip_like_others(words: list[str]) -> None:
    """Photos that a shell listed, or a name of 300 letters: the system's error ended the command, with exit code 1."""
    result = run(*words)
    assert result.exit_code == 2 and result.output.startswith("Usage:"), result.output[-700:]
    assert len(result.output) < 900, "the first words are enough"
