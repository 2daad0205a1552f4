"""What a command chooses for a set: the user's word first, then the existing run, then the size of the set."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import click
import pytest
from click.testing import CliRunner

from shards.commands.flags import bundled
from shards.data_defaults import SMALL_SET, ImageSet
from shards.errors import RunError
from shards.values import ranges_of
from shards.views.view_recipe import ViewRecipe, recipe_named
from student.commands.flags import StudentFlags, refuse_changes
from student.recipe.choice import DEFAULT_STUDENT, Changed, RecipeChoice
from student.recipe.student_recipe import StudentRecipe

FEW = ImageSet(num_images=700, short_side=224)
MANY = ImageSet(num_images=1_281_167)


def choice(model: str = "", name: str | None = None, **fields: Any) -> RecipeChoice:
    """What a user asks for."""
    return RecipeChoice(model=model, name=name, fields=fields)


def test_a_large_set_has_deit_tiny_and_its_recipe() -> None:
    """ImageNet's runs are those of the paper, to the field."""
    for images in (MANY, ImageSet(num_images=SMALL_SET)):
        chosen = choice().for_set(images, {})
        assert (chosen.model, chosen.defaults, chosen.reasons) == (DEFAULT_STUDENT, {}, {})
        assert chosen.recipe(recipe_named("deit")).distill == "hard"


def test_a_few_hundred_images_get_a_small_network_and_their_own_number_of_epochs() -> None:
    """300 epochs of DeiT-Ti were what nobody waited for."""
    chosen = choice().for_set(FEW, {})
    recipe = chosen.recipe(recipe_named("small"))
    assert chosen.model == recipe.model == "small_cnn"
    assert (recipe.distill, recipe.epochs, recipe.image_size) == ("soft", chosen.defaults["epochs"], 96)
    assert set(chosen.reasons) == {"model", "epochs", "size"}
    assert choice(distill="none").for_set(FEW, {}).recipe().view == "small"


@pytest.mark.parametrize("model", [DEFAULT_STUDENT, "small_deit", "resnet10t"])
def test_a_model_that_is_named_stays_and_is_not_trained_for_300_epochs(model: str) -> None:
    """Only what nobody typed is chosen."""
    chosen = choice(model).for_set(FEW, {})
    assert chosen.model == model and "model" not in chosen.reasons
    assert chosen.recipe(recipe_named("small")).epochs == chosen.defaults["epochs"] < 200


def test_what_the_user_sets_comes_first() -> None:
    """Flags, --set and a named recipe are kept as they are."""
    assert choice(epochs=7).for_set(FEW, {}).recipe(recipe_named("small")).epochs == 7
    assert choice(name="deit_hard").for_set(FEW, {}).recipe(recipe_named("small")).epochs == 300
    assert choice(**{"model_args.depth": 2}).for_set(FEW, {}).model == DEFAULT_STUDENT
    recipe = choice(distill="none", image_size=64).for_set(FEW, {}).recipe()
    assert recipe.image_size == 64


def test_an_existing_run_keeps_what_was_chosen_for_it() -> None:
    """Rules may change between versions; the run that goes on is the same run."""
    before = {"model": "resnet10t", "epochs": 11, "image_size": 72, "view_overrides": {"flip": 0.0}}
    chosen = choice(distill="none").for_set(FEW, before)
    recipe = chosen.recipe()
    assert (recipe.model, recipe.epochs, recipe.image_size) == ("resnet10t", 11, 72)
    assert recipe.view_recipe.flip == 0.0 and not chosen.reasons


def test_published_weights_take_fewer_epochs() -> None:
    """The time goes into what must be learned."""
    tuned = choice("resnet18", finetune=True, init_weights="timm:resnet18").for_set(FEW, {})
    assert tuned.defaults["epochs"] < choice("resnet18").for_set(FEW, {}).defaults["epochs"]


def test_a_teacher_of_few_images_is_trained_on_small_images_and_longer() -> None:
    """Ten epochs of 500 images are 78 steps."""
    chosen = choice("efficientnet_lite0", "teacher").for_set(FEW, {})
    recipe = chosen.recipe()
    assert recipe.image_size == 96 and recipe.epochs > 10
    assert choice("efficientnet_lite0", "teacher").for_set(MANY, {}).recipe().epochs == 10


@pytest.mark.parametrize(
    ("images", "before", "fields", "block_views"),
    [
        (FEW, {}, {}, 1),
        (FEW, {}, {"repeats": 3}, 6),
        (FEW, {}, {"view.block_views": 2}, 2),
        (FEW, {"epochs": 5, "view_overrides": {"erase_prob": 0.0}}, {}, 6),
        (FEW, {"epochs": 5, "view_overrides": {"block_views": 1}}, {}, 1),
        (MANY, {}, {}, 6),
    ],
)
def test_a_new_small_teacher_has_new_groups_in_each_epoch(
    images: ImageSet, before: dict[str, Any], fields: dict[str, Any], block_views: int
) -> None:
    """Five epochs of the same groups never trained on 15 of 47 images; a run that was begun so goes on so."""
    chosen = choice("efficientnet_lite0", "teacher", **fields).for_set(images, before)
    assert chosen.recipe().view_recipe.block_views == block_views


@pytest.mark.parametrize(
    ("model", "stage", "stored"),
    [
        (DEFAULT_STUDENT, 0, DEFAULT_STUDENT),
        ("efficientnet_lite0", 0, "efficientnet_lite0"),  # a student's run keeps the word
        ("efficientnet_lite0", 0, "tf_efficientnet_lite0"),  # a teacher's has timm's
        ("resnet18.a1_in1k", 0, "resnet18.a1_in1k"),
        ("deit3_base_patch16_224", 1, "deit3_base_patch16_224"),
        ("", 1, "deit3_base_patch16_224"),
        ("", 0, "small_deit"),
    ],
)
def test_the_words_that_began_a_run_are_no_change_of_it(model: str, stage: int, stored: str) -> None:
    """A run could not go on by its own command."""
    before = RecipeChoice(model=stored, stage=stage).recipe().to_json()
    assert list(RecipeChoice(model=model, stage=stage).changes(before)) == []
    assert [change.field for change in choice("resnet34").changes(before)] == ["model"]


def test_a_stage_that_a_model_has_not_is_refused_by_the_models_name() -> None:
    """Also where nobody named the model."""
    with pytest.raises(ValueError, match=f"stage: {DEFAULT_STUDENT} is trained with"):
        list(RecipeChoice(model="", stage=5).changes({}))


@click.command()
@bundled(StudentFlags, "student")
def of_flags(student: StudentFlags) -> None:
    """Make the recipe of a command's flags."""
    student.choice().recipe()


def out_of_range(cls: Any) -> Iterator[tuple[str, Any]]:
    """A value just above the range of each number of a recipe that has one, and no choice of each that has some."""
    hints = get_type_hints(cls)
    for name, (_, high) in ranges_of(cls).items():
        yield name, high + 1
    for name, hint in hints.items():
        if get_origin(hint) is Literal:
            yield name, "nonsense"


@pytest.mark.parametrize("cls", [StudentRecipe, ViewRecipe])
def test_a_value_that_a_file_set_is_refused_with_the_name_of_the_file(tmp_path: Path, cls: Any) -> None:
    """Whoever gives two files, or a script that gives one, has to know which line to mend; --set has no file."""
    path, table, wrong = tmp_path / "s.toml", "view." if cls is ViewRecipe else "", []
    for name, value in out_of_range(cls):
        if f"{table}{name}" == "view.size":  # which `image_size` sets
            continue
        path.write_text(("[view]\n" if table else "") + f"{name} = {json.dumps(value)}\n")
        words = ["--config", str(path)]
        of_file = str(CliRunner().invoke(of_flags, words).exception)
        of_set = str(CliRunner().invoke(of_flags, [*words, "--set", f"{table}{name}={value}"]).exception)
        if not of_file.startswith(f"--config {path}: ") or "--config" in of_set or name not in of_file:
            wrong.append(f"{table}{name}: {of_file}; with --set: {of_set}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("old", "said"), [("", "none"), (0.0, "0.0"), (False, "False"), (0.3, "0.3")])
def test_a_refused_change_says_what_the_run_has(old: Any, said: str) -> None:
    """A value of 0 was called none."""
    command = click.Command("train", params=[click.Option(["--set", "sets"], multiple=True)])
    message = f"begun with {said};"
    with command.make_context("train", ["--set", "drop_path=0.5"]), pytest.raises(RunError, match=message):
        refuse_changes(Path("run"), [Changed("drop_path", old, 0.5, ("drop_path",))])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "drop_path=0.5", "--config", "s.toml"], "--set drop_path=0.5: run was begun with 0.1"),
        (["--set", "lr=0.5", "--config", "s.toml"], "--config s.toml: drop_path = 0.5: run was begun with 0.1"),
        (["--config", "s.toml"], "--config s.toml: drop_path = 0.5: run was begun with 0.1"),
        (["--set", "lr=0.5", "--drop-path", "0.5"], "--drop-path 0.5: run was begun with 0.1"),
    ],
)
def test_a_refused_change_is_named_where_it_was_typed(words: list[str], said: str) -> None:
    """A field of --config was called one of --set where there was any --set."""
    options = [["--set", "sets"], ["--config", "config"], ["--drop-path", "drop_path"]]
    params: list[click.Parameter] = [click.Option(names, multiple=names[1] == "sets") for names in options]
    command = click.Command("train", params=params)
    with command.make_context("train", words), pytest.raises(RunError, match=f"^{re.escape(said)}"):
        refuse_changes(Path("run"), [Changed("drop_path", 0.1, 0.5, ("drop_path",))])


def test_a_refused_view_recipe_is_named_by_the_flag_that_set_it() -> None:
    """`--set view.name=…` is the other spelling of `--set view=…`; nobody gave --config."""
    command = click.Command("train", params=[click.Option(["--set", "sets"], multiple=True)])
    for words in ("view=deit3", "view.name=deit3", " view.name = deit3"):
        with command.make_context("train", ["--set", words]), pytest.raises(RunError, match=r"^--set view=deit3: run"):
            refuse_changes(Path("run"), [Changed("view", "deit", "deit3", ("view",))])
