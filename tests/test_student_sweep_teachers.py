"""The set of teachers as an axis of a sweep: names, cells, the map of each set, and what several caches cost."""

import csv
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cli import cli
from student.cost.cost_estimate import Job, Rates, cost
from student.sweep.grid import Grid
from student.sweep.sweep_directory import read_sweep
from student.sweep.sweep_teachers import SweepTeachers, merged_facts
from teacher_cache.store.cache import TeacherCache
from tests.student_tiny import BATCH, linear_teacher, make_cache, views, write_shards
from tests.test_student_laws import convolutional_teacher

SETS = ("a", "b", "a+b")
GRID = Grid(weights=(0, 0.5), temperatures=(2.0,), distillations=("soft",), seeds=(0, 1), teachers=SETS)


class Named(TeacherCache):
    """A cache of which only its place and its number of views are asked."""

    def __init__(self, url, num_views):
        self.url, self._num_views = url, num_views

    @property
    def num_views(self):
        return self._num_views


def caches(*urls):
    return [Named(url, 4 + n) for n, url in enumerate(urls)]


def test_every_set_has_its_cells_and_the_baseline_has_none():
    """No teacher is no teacher of any set: trained once a seed."""
    names = [cell.name for cell in GRID.cells() if cell.seed == 0]
    assert names == ["none-s0", "soft-l0.5-t2-a-s0", "soft-l0.5-t2-b-s0", "soft-l0.5-t2-a+b-s0"]
    assert len({cell.name for cell in GRID.cells()}) == len(GRID.cells()) == 8


def test_cells_that_share_a_pass_hear_the_same_teachers():
    for group in GRID.groups(8):
        assert len({(cell.seed, cell.teachers) for cell in group}) == 1
    assert sum(map(len, GRID.groups(8))) == len(GRID.cells())


def test_a_grid_without_the_axis_is_written_as_it_always_was():
    """Sweeps of one cache keep their files, their names and their passes."""
    plain = replace(GRID, teachers=("",))
    assert "teachers" not in plain.to_json() and "teachers" not in plain.cells()[1].to_json()
    assert Grid.from_json(plain.to_json()) == plain and Grid.from_json(GRID.to_json()) == GRID
    assert [len(group) for group in plain.groups(8)] == [2, 2]
    assert plain.union(GRID).teachers == ("", *SETS)


def test_caches_are_called_after_their_places():
    taught = SweepTeachers.of(caches("s3://here/a.zarr", "/there/b.zarr/"), (3, 1))
    assert taught.weights == (0.75, 0.25) and taught.num_views == 4
    places = ["s3://here/a.zarr", "/there/b.zarr/"]
    assert [c.url for c in taught.teaching("").caches] == places and taught.teaching("").weights == (0.75, 0.25)
    assert [c.url for c in taught.teaching("b+a").caches] == places, "order is the sweep's"
    assert (taught.teaching("b").caches, taught.teaching("b").weights) == ((taught.caches["b"],), (1.0,))


@pytest.mark.parametrize("teachers", ["c", "a+c", "a+a", "a++b"])
def test_names_that_are_not_here_are_refused(teachers):
    with pytest.raises(ValueError, match=r"teachers: expected names of caches joined by \+.* there are a, b"):
        SweepTeachers.of(caches("a.zarr", "b.zarr")).teaching(teachers)


@pytest.mark.parametrize(
    "urls, message",
    [
        (("x/a.zarr", "y/a.zarr"), "two caches are called a: x/a.zarr and y/a.zarr"),
        (("a.zarr", "b+c.zarr"), r"its name 'b\+c' cannot stand in a set"),
    ],
    ids=["one name for two", "a name that joins"],
)
def test_caches_that_cannot_be_told_apart_are_refused(urls, message):
    with pytest.raises(ValueError, match=message):
        SweepTeachers.of(caches(*urls))


def test_facts_of_several_caches_are_sums_and_the_worst_record():
    one = {"teacher": "x", "record": "r", "views_recipe": "deit", "num_views": 6, "num_samples": 10}
    costs = {"forwards_spent": 60, "bytes_per_view": 4.0, "bytes": 240.0}
    row = {"temperature": 2.0, "gradient_error": 0.1}
    worse = {"temperature": 2.0, "gradient_error": 0.3}
    facts = merged_facts(
        {"a": {"cache": one | costs, "fidelity": [row]}, "b": {"cache": one | costs, "fidelity": [worse]}}
    )
    assert facts["cache"]["forwards_spent"] == 120 and facts["cache"]["teacher"] == "a: x; b: x"
    assert facts["fidelity"] == [worse] and set(facts["caches"]) == {"a", "b"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    index = write_shards(folder / "train")
    write_shards(folder / "val", rows=(9,), seed=1)
    for name, teacher in (("a", linear_teacher(views())), ("b", convolutional_teacher())):
        make_cache(folder / f"{name}.zarr", index, views(), num_views=4, teacher=teacher).close()
    return folder


def done(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_ablate_trains_every_set_and_the_report_shows_each(tmp_path, folder):
    """--teachers a,b,a+b through the command line: runs, their teachers, a map a set, a table of sets, the CSV."""
    sweep = tmp_path / "sweep"
    command = ["ablate", "--shards", folder / "train", "--val-shards", folder / "val", "--out", sweep]
    command += ["--cache", folder / "a.zarr", "--cache", folder / "b.zarr", "--teacher-weight", ".7,.3"]
    command += ["--model", "student_tiny_distilled", "--epochs", 1, "--batch-size", BATCH, "--set", "repeats=1"]
    command += ["--lambda", "0,.5", "--tau", 2, "--distill", "soft", "--workers", 0, "--device", "cpu"]
    assert "4 of 4 cells done" in done(*command, "--teachers", ",".join(SETS))
    taught = {result.cell.teachers: result.run.config["teacher"] for result in read_sweep(sweep).results}
    assert [taught[name]["kind"] for name in ("a", "b", "a+b")] == ["cache", "cache", "several"]
    weights = [one["weight"] for one in taught["a+b"]["teachers"]]
    assert weights == pytest.approx([0.7, 0.3])
    assert [one["fingerprint"] for one in taught["a+b"]["teachers"]] == [taught[n]["fingerprint"] for n in "ab"]
    done("report", sweep, "--png", tmp_path / "png", "--csv", tmp_path / "table.csv")
    page = (sweep / "report.html").read_text()
    for name in SETS:
        assert f"taught by {name}" in page and f"soft λ 0.5 τ 2 from {name}" in page
        assert (tmp_path / "png" / f"top1-map-{name}.png").is_file()
    assert "Which teachers?" in page
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["teachers"] for row in rows] == ["", *SETS]
    facts = json.loads((sweep / "sweep.json").read_text())["facts"]
    assert facts["cache"]["forwards_spent"] == 2 * facts["caches"]["a"]["forwards_spent"]
    wrong = CliRunner().invoke(cli, [str(word) for word in (*command, "--teachers", "a,c")])
    assert wrong.exit_code == 2 and "there are a, b" in wrong.output


def test_cost_takes_several_caches(folder):
    said = done("cost", "--cache", folder / "a.zarr", "--cache", folder / "b.zarr", "--students", 2)
    one = done("cost", "--cache", folder / "a.zarr", "--students", 2)
    assert "2 teachers of the same cost, each with a stage 1 of its own" in said and "teachers of" not in one
    assert "stage 1, once: 528 forwards" in said and "stage 1, once: 264 forwards" in one


def test_several_teachers_cost_several_times_the_forwards():
    """By hand: stage 1 and every student online pay each teacher; a student from the caches pays none."""
    job = Job(num_samples=1000, num_views=10, bytes_per_view=8, epochs=10, num_students=3, num_gpus=1, num_cores=10**6)
    rates = Rates(teacher=10, student=20, views=1, unit_views=1, source="by hand")
    one, two = cost(job, rates), cost(replace(job, num_teachers=2), rates)
    assert two.forwards_spent == 2 * one.forwards_spent
    assert two.teacher_hours == pytest.approx(2 * one.teacher_hours)
    assert two.cached_hours == one.cached_hours and two.storage_bytes == one.storage_bytes
    assert two.online_hours == pytest.approx(10_000 * (2 / 10 + 1 / 20) / 3600)
