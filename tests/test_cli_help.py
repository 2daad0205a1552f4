"""Help that can be trusted: examples that parse, recipes with every field explained, one name for one thing."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cli import COMMANDS, EXAMPLES, REQUEUED, SECTIONS, cli
from shards.values import words_of
from shards.views.view_recipe import RECIPES, ViewRecipe
from student.recipe.papers import STUDENT_RECIPES
from student.recipe.student_recipe import StudentRecipe


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_its_help_in_examples_that_parse(command: str) -> None:
    """They are parsed, not run: every flag exists and every value is one that it takes."""
    shown = run(command, "--help").output
    assert "Examples:" in shown
    for line in EXAMPLES[command]:
        first, *words = shlex.split(line.replace("\\\n", " "))
        assert first == command and line.splitlines()[-1] in shown
        found = cli.get_command(click.Context(cli, info_name="deit-cache"), command)
        assert found is not None
        found.make_context(command, words)
        assert max(map(len, line.splitlines())) <= 85, "with the program's name it fits into 100 columns"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is_and_no_bound_is_noise(command: str) -> None:
    found = cli.get_command(click.Context(cli, info_name="deit-cache"), command)
    assert found is not None
    silent = [param.opts[0] for param in found.params if isinstance(param, click.Option) and not param.help]
    assert not silent
    shown = run(command, "--help").output
    assert "x>=1" not in shown and "x<=9223372036854775807" not in shown and " RANGE " not in shown


def test_the_list_of_commands_is_whole_and_grouped() -> None:
    """Nothing is cut, and no command is imported for it."""
    shown = run("--help").output
    assert all(f"{name} " in shown and entry.summary in shown for name, entry in COMMANDS.items())
    assert (
        "..." not in shown.replace("[ARGS]...", "")
        and len(set(shown.splitlines()) & {f"{e.group}:" for e in COMMANDS.values()}) == 4
    )


GOLDEN = Path(__file__).parent / "golden" / "v0.1.0"
SUITED = {
    GOLDEN / "run": {"--weights", "--teacher-weights"},
    GOLDEN / "teacher.safetensors": {"--weights", "--teacher-weights"},
    GOLDEN / "dense.zarr": {"--cache"},
    GOLDEN / "train": {"--shards", "--val-shards"},
    Path("shards-{00..09}.tar"): {"--shards", "--val-shards"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_word_without_its_option_is_told_the_option_that_suits_it(command: str) -> None:
    """`predict RUN cat.jpg` said that --weights is missing, and `train-student CACHE --shards X` wanted it as --out."""
    found = cli.get_command(click.Context(cli, info_name="deit-cache"), command)
    assert found is not None
    options = {option for param in found.params for option in param.opts}
    single = any(isinstance(param, click.Argument) and param.nargs == 1 for param in found.params)
    required = [param.opts[0] for param in found.params if isinstance(param, click.Option) and param.required]
    if not required or single:
        return
    for artefact, suited in SUITED.items():
        said = run(command, artefact, *["cat.jpg"] * (command == "predict")).output
        assert "Missing option" in said
        advised = [option for option in suited & options if f"Type {option} {artefact}" in said.replace("\n", "")]
        assert len(advised) == bool(suited & options), said
        assert bool(advised) == ("Type" in said), said
    others = () if command == "predict" else ("what/ever",)
    for word in others:
        assert f"Type {required[0]} {word}" in run(command, word).output
    rest = ["--weights", "w", "--cache", "c", "--out", "o", "--val-shards", "v"]
    flags = [word for pair in zip(rest[::2], rest[1::2], strict=True) if pair[0] in options for word in pair]
    if "--shards" in required:
        assert f"Type --shards {GOLDEN / 'train'}" in run(command, *flags, GOLDEN / "train").output


def test_sections_name_options_that_exist() -> None:
    context = click.Context(cli, info_name="deit-cache")
    commands = [command for name in COMMANDS if (command := cli.get_command(context, name)) is not None]
    names = {name for command in commands for param in command.params for name in (param.name, *param.opts)}
    assert {name for section in SECTIONS.values() for name in section} <= names
    for name in ("train-student", "ablate"):
        shown = run(name, "--help").output
        assert shown.count("\nOptions:\n  -h, --help") == 1, "every option of the long helps has a section"


def test_tables_name_commands() -> None:
    assert set(EXAMPLES) == set(COMMANDS) and set(COMMANDS) >= REQUEUED


def test_every_field_of_a_recipe_has_words() -> None:
    assert set(words_of(ViewRecipe)) == {field.name for field in fields(ViewRecipe)}
    assert set(words_of(StudentRecipe)) == {field.name for field in fields(StudentRecipe)}


@pytest.mark.parametrize("name", sorted({*RECIPES, *STUDENT_RECIPES}))
def test_recipes_prints_each_field_with_its_meaning(name: str) -> None:
    shown = run("recipes", name).output
    tables = [words_of(ViewRecipe)] * (name in RECIPES) + [words_of(StudentRecipe)] * (name in STUDENT_RECIPES)
    for words in tables:
        for field, (_, meaning) in words.items():
            assert re.search(rf"^[ *] {field} .*{re.escape(meaning)}$", shown, re.M)


def test_recipes_lists_and_is_json() -> None:
    assert json.loads(run("recipes", "--json").output) == {"student": sorted(STUDENT_RECIPES), "view": sorted(RECIPES)}
    both = json.loads(run("recipes", "deit3", "--json").output)
    assert set(both) == {"view"} and both["view"]["three_augment"] is True
    assert "differs" in run("recipes", "deit3").output and "differs" not in run("recipes", "deit").output
    assert "the nearest is 'deit3'" in run("recipes", "diet3").output


OLD = {
    "make-shards": {"--seed": "--order-seed"},
    "cache-teacher": {"--recipe": "--view-recipe", "--set": "--view-set"},
    "plan-cache": {"--recipe": "--view-recipe", "--set": "--view-set"},
    "show-views": {"--recipe": "--view-recipe", "--set": "--view-set"},
    "verify-cache": {"--seed": "--sample-seed"},
}
"""Spellings of version 0.1 that mean something else in train-student, and their names of today."""


@pytest.mark.parametrize("command", OLD)
def test_one_name_for_one_thing_and_old_spellings_stay(command: str) -> None:
    found = cli.get_command(click.Context(cli, info_name="deit-cache"), command)
    assert found is not None
    spellings = [param.opts for param in found.params]
    for old, new in OLD[command].items():
        assert [new, old] in spellings


@pytest.mark.parametrize(("name", "program"), [("cli.py", "python cli.py"), ("deit-cache", "deit-cache")])
def test_examples_begin_as_the_user_began(name: str, program: str) -> None:
    shown = CliRunner().invoke(cli, ["models", "--help"], prog_name=name).output
    assert f"  {program} models deit_tiny" in shown
