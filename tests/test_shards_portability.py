"""The same pixels on every machine: every recipe, with each library's vector instructions switched off (law 1).

Whoever trains from a cache years later has another CPU than the one that made it. The switches are what can be tried of
that on one machine; `python -m benchmarks.portability` shows the same as a table.
"""

from benchmarks.portability import FIRST, View, difference, in_environment, recipes, rendered, switches, together
from shards.views.view_recipe import RECIPES

NUM_VIEWS = 48


def test_every_recipe_has_the_same_pixels_without_vector_instructions() -> None:
    """At least 2,000 views in each of the environments, byte for byte, and drawn alike to the last bit.

    Several libraries' switches are thrown at once; the benchmark throws them one by one, and says which it was.
    """
    expected = rendered(NUM_VIEWS)
    assert set(expected) == {*RECIPES, FIRST}
    for name, environment in together().items():
        found = difference(expected, in_environment(environment, NUM_VIEWS))
        assert found["views"] >= 2000, name
        assert found["differing"] == 0 and found["drawn_differently"] == 0, f"{name}: {found}"


def test_no_switch_is_left_out() -> None:
    thrown = {(name, value) for environment in together().values() for name, value in environment.items()}
    for environment in switches().values():
        assert set(environment.items()) <= thrown


def test_new_recipes_rotate_in_the_new_way_and_the_first_one_is_kept() -> None:
    """Otherwise the test above would look at no rotation at all."""
    drawn = {name: {part for view in views for part in view[2]} for name, views in rendered(16).items()}
    assert "rotate2" in drawn["deit"] and "rotate" not in drawn["deit"] and "rotate" in drawn[FIRST]
    assert recipes()[FIRST].versions == ()


def test_a_difference_is_counted_with_its_operation() -> None:
    view: View = (1, 2, ("a.jpg", "rotate2"))
    same = {name: [view, view] for name in ("deit", FIRST)}
    other = {"deit": [view, (9, 2, view[2])], FIRST: [(9, 2, view[2]), (1, 3, view[2])]}
    assert difference(same, same) == {"views": 2, "differing": 0, "drawn_differently": 0, "first_rotation": 0, "in": {}}
    found = difference(same, other)
    assert (found["differing"], found["first_rotation"], found["drawn_differently"]) == (1, 1, 1)
    assert found["in"] == {"a.jpg": 1, "rotate2": 1}
