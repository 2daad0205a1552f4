"""Reports: a page says what the files say, nothing is loaded from anywhere, and no state of a sweep breaks it."""

import csv
import io
import itertools
import json
import math
import re
import statistics
import tracemalloc
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shards.errors import RunError
from shards.rng import stream
from student.report.charts import Level, Series, changes, number
from student.report.colours import GRID as GRID_COLOUR
from student.report.colours import INK, LINE, MUTED, SERIES, ink_on, luminance, ramp
from student.report.drawing import line_chart
from student.report.runs_page import distillation, labels
from student.report.stats import baseline, best, forward_count, groups, paired_gain, pooled_spread, told_apart
from student.report.write import read, report_csv, write_report
from student.run.run_log import RunLog
from student.run.run_reader import read_run
from student.sweep.grid import Cell, Grid
from student.sweep.sweep_directory import CellStatus, Sweep, SweepDirectory, read_sweep
from teacher_cache.network.weights import weights_sha256
from teacher_cache.network.weights_metadata import BEST_WEIGHTS, METADATA_KEY

LAST_WEIGHTS = "weights.safetensors"
GRID = Grid(weights=(0, 0.5, 0.9), temperatures=(1, 4), seeds=(0, 1, 2))
FACTS = {
    "cache": {"teacher": "regnety_160", "num_views": 30, "num_samples": 1000, "forwards_spent": 30_000, "bytes": 2e6},
    "fidelity": [
        {"temperature": 1.0, "gradient_error": 0.05, "kl": 0.01, "kl_p99": 0.1, "bias": -0.01},
        {"temperature": 4.0, "gradient_error": 0.4, "kl": 0.02, "kl_p99": None, "bias": None},
    ],
}


def top1_of(cell: Cell) -> float:
    """A result that no other cell has."""
    return 90 + cell.distill_weight * (3 if cell.distill == "soft" else 2) + stream(cell.seed, cell.name).uniform()


def write_run(out: Path, config: dict[str, Any], top1: float, *, epochs: int = 6, finished: bool = True) -> None:
    """A run directory as the trainer leaves it."""
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config))
    lines = []
    for epoch in range(epochs):
        share = (epoch + 1) / epochs
        lines.append({"kind": "step", "step": epoch * 10 + 5, "epoch": epoch, "loss": 2 - share, "lr": 1e-3})
        line = {"kind": "epoch", "step": epoch * 10 + 10, "epoch": epoch, "loss": 2 - share, "seconds": 60 * epoch}
        lines.append({**line, "teacher_agreement": 0.9 * share, "val": {"top1": top1 * share, "loss": 99}})
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        summary = {"top1": top1, "top5": 99.0, "teacher_agreement": 0.9, "images": 30_000, "pixels_checked": 30_000}
        (out / "summary.json").write_text(json.dumps(summary))


def write_sweep(path: Path, grid: Grid = GRID, *, facts: Any = FACTS, left_out: tuple[str, ...] = ()) -> Sweep:
    """A sweep directory in which all cells but `left_out` are done."""
    directory = SweepDirectory(path)
    directory.prepare(grid, common={"recipe": {"model": "deit_tiny"}}, facts=facts)
    for cell in grid.cells():
        if cell.name not in left_out:
            write_run(directory.run_path(cell), {"recipe": {"model": "deit_tiny", **cell.to_json()}}, top1_of(cell))
            directory.set_status(cell, CellStatus(state="done", attempts=1, seconds=36.0))
    return read_sweep(path)


class Page(HTMLParser):
    """Checks that tags nest and close; collects text, tags and attributes."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(tmp_path: Path, *paths: Path) -> tuple[str, Page]:
    """The HTML of a report and what is in it."""
    html = write_report(paths, html=tmp_path / "page.html").html.read_text()
    return html, Page(html)


# --- runs on disk -----------------------------------------------------------------------------------------------------


def test_what_a_resumed_run_says_again_counts_once_and_a_torn_line_not_at_all(tmp_path: Path) -> None:
    write_run(tmp_path / "x", {"seed": 1}, 90.0, epochs=3)
    with (tmp_path / "x" / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"epoch","step":20,"epoch":1,"loss":7.5,"val":{"top1":42.0}}\n')
        file.write('{"kind":"step","step":25,"epoch":2,"loss":null}\n{"kind":"epoch","step":30,"epo')
    run = read_run(tmp_path / "x")
    assert [point.epoch for point in run.epochs] == [0, 1, 2]
    assert (run.epochs[1]["loss"], run.epochs[1]["top1"]) == (7.5, 42.0)
    assert [point.step for point in run.steps] == [5, 15, 25]
    assert math.isnan(run.steps[2]["loss"]) and math.isnan(run.epochs[1]["lr"])


def resumed(out: Path) -> None:
    with RunLog(out) as log:
        log.begin(json.loads((out / "config.json").read_text()), step=30)


def told_before(out: Path) -> None:
    with RunLog(out) as log:
        assert log.epoch_values(30) and log.best_epoch()[0] == 2


READERS = [read_run, resumed, told_before]


@pytest.mark.parametrize("reader", READERS)
def test_metrics_are_read_line_by_line(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    """A run of days that logs every step writes gigabytes; a report of it must not need them."""
    write_run(tmp_path / "x", {"seed": 1}, 90.0, epochs=3, finished=False)
    long = json.dumps({"kind": "step", "step": 25, "epoch": 2, "loss": 1.0, "words": "x" * 100_000}) + "\n"
    with (tmp_path / "x/metrics.jsonl").open("a") as file:
        file.writelines(long for _ in range(200))
    tracemalloc.start()
    try:
        reader(tmp_path / "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "x/metrics.jsonl").stat().st_size / 4


@pytest.mark.parametrize("reader", READERS)
def test_a_line_of_metrics_that_never_ends_is_named(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    write_run(tmp_path / "x", {"seed": 1}, 90.0, epochs=1, finished=False)
    with (tmp_path / "x/metrics.jsonl").open("a") as file:
        file.truncate(1 << 28)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 3: expected at most 1,048,576 bytes, got more"):
        reader(tmp_path / "x")
    assert (tmp_path / "x/metrics.jsonl").stat().st_size == 1 << 28, "nothing was changed"


def test_the_loss_of_validation_does_not_pass_for_the_loss_of_training(tmp_path: Path) -> None:
    write_run(tmp_path / "x", {}, 90.0, epochs=2)
    assert [point["loss"] for point in read_run(tmp_path / "x").epochs] == [1.5, 1.0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.jsonl", '{"kind":"step","step":1,"epoch":0}\n{"kind"\n{}\n', r"metrics\.jsonl, line 2"),
        ("metrics.jsonl", '{"kind":"step","epoch":0}\n', r"line 1: object missing required field `step`"),
        ("summary.json", "[1]", r"summary\.json: expected `object`, got `array`"),
        ("config.json", "{", r"config\.json: expected JSON, got"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_run(tmp_path / "x", {}, 90.0)
    (tmp_path / "x" / file).write_text(text)
    with pytest.raises(RunError, match=message):
        read_run(tmp_path / "x")


@pytest.mark.parametrize("config", [{"distill": "soft"}, {"recipe": {"distill": "soft"}}, {"any": {"distill": "soft"}}])
def test_a_setting_is_found_at_the_top_or_one_level_deep(tmp_path: Path, config: dict[str, Any]) -> None:
    write_run(tmp_path / "x", config, 90.0)
    assert read_run(tmp_path / "x").setting("distill") == "soft"


def test_names_of_runs_are_as_short_as_they_can_be_and_unique(tmp_path: Path) -> None:
    for name in ("a/x", "b/x", "b/y"):
        write_run(tmp_path / name, {}, 90.0)
    runs = [read_run(tmp_path / name) for name in ("a/x", "b/x", "b/y")]
    assert labels(runs) == ["a/x", "b/x", "b/y"]
    assert labels(runs[1:]) == ["x", "y"]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_means_spreads_and_gains_are_those_of_the_textbook(tmp_path: Path) -> None:
    found = groups(write_sweep(tmp_path / "s"))
    assert [group.cell.setting for group in found] == list(dict.fromkeys(cell.setting for cell in GRID.cells()))
    for group in found:
        values = [top1_of(result.cell) for result in group.results]
        assert group.values("top1") == values
        assert group.mean("top1") == pytest.approx(statistics.fmean(values))
        assert group.spread("top1") == pytest.approx(statistics.stdev(values))
    variances = [statistics.variance(group.values("top1")) for group in found]
    assert pooled_spread(found) == pytest.approx(math.sqrt(statistics.fmean(variances)))
    base, soft = baseline(found, None), best(found)
    assert base is not None and soft is not None and soft.cell.distill == "soft" and soft.cell.distill_weight == 0.9
    assert paired_gain(soft, base) == [
        top1_of(ours.cell) - top1_of(theirs.cell) for ours, theirs in zip(soft.results, base.results, strict=True)
    ]


def test_cells_are_told_apart_only_beyond_two_standard_errors(tmp_path: Path) -> None:
    found = groups(write_sweep(tmp_path / "s"))
    one, other = found[0], found[-1]
    gap = abs(one.mean("top1") - other.mean("top1"))
    limit = gap / (2 * math.sqrt(2 / 3))
    assert told_apart(one, other, limit * 0.999) and not told_apart(one, other, limit * 1.001)
    assert not told_apart(one, other, math.nan), "without repeats nothing is known"


def test_forwards_count_the_distilled_students_alone(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", left_out=("soft-l0.5-t4-s1",))
    students = sum(cell.distill != "none" for cell in GRID.cells()) - 1
    count = forward_count(sweep)
    assert (count.spent, count.online, count.num_students) == (30_000, students * 30_000, students)
    assert count.saved == (students - 1) * 30_000 and count.break_even == 1.0
    assert math.isnan(forward_count(write_sweep(tmp_path / "t", facts={})).saved), "an unknown cache is not free"


# --- pages ------------------------------------------------------------------------------------------------------------


def test_the_page_of_a_sweep_holds_every_cell_and_loads_nothing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s")
    html, page = page_of(tmp_path, tmp_path / "s")
    for group in groups(sweep):
        assert f"{group.mean('top1'):.2f}" in page.words
        assert f"± {group.spread('top1'):.2f}" in page.words
    assert not re.search(r"https?:|src=|@import|url\((?!#)|<script|<link", html)
    assert not {name for _, attributes in page.tags for name in attributes if name.startswith("on")}
    for text in ("★", "0.400", "limiting", "faithful", "Teacher forwards saved".lower(), "regnety_160"):
        assert text in page.words, text


def test_the_map_shows_the_error_of_the_record_under_its_own_column(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s")
    html, _ = page_of(tmp_path, tmp_path / "s")
    foot = re.search(r"<tfoot>.*?</tfoot>", html)
    assert foot is not None
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in foot[0].split("</tr>")[:2]]
    assert cells == [["exact", "0.050", "0.400"], ["faithful", "faithful", "limiting"]]


def test_each_loss_stands_over_its_own_error(tmp_path: Path) -> None:
    """A record that is good for the divergence may be bad for a loss that weighs the tail."""
    errors = [
        {"loss": loss, "temperature": tau, "gradient_error": error}
        for loss, tau, error in (("soft", 1.0, 0.05), ("soft", 2.0, 0.08), ("dist", 1.0, 0.2), ("dist", 2.0, None))
    ]
    grid = Grid(weights=(0.5,), temperatures=(1, 2), distillations=("hard", "soft", "dist"))
    write_sweep(tmp_path / "s", grid, facts={**FACTS, "loss_errors": errors})
    html, page = page_of(tmp_path, tmp_path / "s")
    foot = re.search(r"<tfoot>.*?</tfoot>", html)
    assert foot is not None
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in foot[0].split("</tr>")[:2]]
    assert cells[0] == ["exact", "0.050", "0.080", "0.200", "–"]
    assert cells[1] == ["faithful", "faithful", "faithful", "fair", "not measured"]
    assert "Gradient error of each loss" in html and "0.200" in page.words


def test_a_grid_has_the_largest_class_and_the_number_of_images_beside_its_shares(tmp_path: Path) -> None:
    """The best cell of one was below the share of the largest class, and nothing said so."""
    sweep = write_sweep(tmp_path / "s")
    for cell in sweep.grid.cells():
        summary = SweepDirectory(tmp_path / "s").run_path(cell) / "summary.json"
        more = {"validation_majority": 40.0, "validation_images": 53, "epochs": 6}
        summary.write_text(json.dumps({**json.loads(summary.read_text()), **more}))
    words = page_of(tmp_path, tmp_path / "s")[1].words
    assert "always naming the largest class of 53 images" in words
    assert "of 5,000 images of the last epoch: best cell agrees with the teacher" in words


def test_equal_numbers_are_marked_as_such_and_one_seed_claims_nothing(tmp_path: Path) -> None:
    write_sweep(tmp_path / "three")
    assert "standard errors" in page_of(tmp_path, tmp_path / "three")[1].words
    write_sweep(tmp_path / "one", Grid(weights=(0, 0.5), temperatures=(1, 4), seeds=(0,)))
    words = page_of(tmp_path, tmp_path / "one")[1].words
    assert "One seed per cell" in words and "≈" not in words and "nan" not in words.lower()


STATES = {
    "nothing trained": (GRID, tuple(cell.name for cell in GRID.cells())),
    "no baseline": (Grid(weights=(0.5,), temperatures=(1,), seeds=(0, 1)), ()),
    "only the baseline": (Grid(weights=(0,), temperatures=(), seeds=(0,)), ()),
    "only hard": (Grid(weights=(0, 1), temperatures=(), distillations=("hard",)), ()),
    "half a seed": (GRID, tuple(cell.name for cell in GRID.cells() if cell.seed == 1)),
    "several views": (Grid(weights=(0, 0.5), temperatures=(1, 2), seeds=(0, 1), views_used=(6, 12, None)), ()),
}


@pytest.mark.parametrize("facts", [{}, FACTS], ids=["no facts", "facts"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.slow
def test_every_state_of_a_sweep_has_a_page_and_figures(tmp_path: Path, state: str, facts: Any) -> None:
    grid, left_out = STATES[state]
    write_sweep(tmp_path / "s", grid, facts=facts, left_out=left_out)
    _, page = page_of(tmp_path, tmp_path / "s")
    assert not re.search(r"\bnan\b|\binf\b|None", page.words), "a missing number is a dash"
    files = write_report([tmp_path / "s"], png_dir=tmp_path / "png")
    assert len(files.pngs) == (len(grid.views_used) if max(grid.weights) > 0 else 0)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files.pngs)


def test_an_error_message_cannot_become_markup(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", left_out=("hard-l0.5-s1",))
    cell = next(result.cell for result in sweep.results if result.cell.name == "hard-l0.5-s1")
    error = '<script>alert("x")</script> & loss > 1'
    SweepDirectory(sweep.path).set_status(cell, CellStatus(state="failed", error=error, attempts=2))
    html, page = page_of(tmp_path, sweep.path)
    assert "<script" not in html and error in page.words and "1 failed" in page.words


def test_the_page_of_runs_holds_their_results_curves_and_differences(tmp_path: Path) -> None:
    for name, top1 in (("a", 91.25), ("b", 93.5)):
        write_run(tmp_path / name, {"recipe": {"distill": "soft", "temperature": top1, "epochs": 6}}, top1)
    write_run(tmp_path / "c", {"recipe": {"distill": "none", "epochs": 6}}, 80.0, finished=False)
    html, page = page_of(tmp_path, *(tmp_path / name for name in "abc"))
    for text in ("91.2", "93.5", "80.0", "unfinished: step 60, 6 of", "no teacher", "recipe.temperature"):
        assert text in page.words, text
    assert "recipe.epochs = 6" in page.words, "equal settings are listed apart"
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert {"Top-1 on the validation set", "Training loss"} <= {str(chart["aria-label"]) for chart in charts}
    assert html.count("<svg") == html.count("</svg>")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"distill": "soft", "distill_weight": 0.5, "temperature": 3.0, "reduction": "textbook"}, "soft, λ 0.5, τ 3"),
        ({"distill": "soft", "distill_weight": 0.1, "temperature": 3.0, "reduction": "reference"},
         "soft, λ 0.1, τ 3, reference reduction"),
        ({"distill": "hard", "distill_weight": 0.5, "temperature": 1.0, "reduction": "per_class"},
         "hard, λ 0.5, per_class reduction"),
        ({"distill": "none"}, "no teacher"),
    ],
    ids=str,
)  # fmt: skip
def test_a_weight_is_said_with_what_it_is_measured_in(tmp_path: Path, recipe: dict[str, Any], words: str) -> None:
    """λ = .1 of one reduction is a ten-thousandth of another's."""
    write_run(tmp_path / "run", {"recipe": recipe}, 90.0)
    assert distillation(read_run(tmp_path / "run")) == words


def test_every_table_says_what_it_is_and_names_its_rows_and_columns(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s")
    html, _ = page_of(tmp_path, tmp_path / "s")
    tables = re.findall(r"<table.*?</table>", html, re.S)
    assert len(tables) >= 5
    for table in tables:
        assert "<caption" in table and '<th scope="col"' in table and '<th scope="row">' in table
    assert 'lang="en"' in html and "viewport" in html


def test_the_same_files_give_the_same_page_and_figures(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s")
    made = [write_report([tmp_path / "s"], html=tmp_path / f"{n}.html", png_dir=tmp_path / f"{n}") for n in (0, 1)]
    assert made[0].html.read_bytes() == made[1].html.read_bytes()
    assert made[0].pngs[0].read_bytes() == made[1].pngs[0].read_bytes()


def test_a_long_training_does_not_make_a_long_page(tmp_path: Path) -> None:
    for name in "abcd":
        write_run(tmp_path / name, {}, 90.0, epochs=800)
    html, _ = page_of(tmp_path, *(tmp_path / name for name in "abcd"))
    assert len(html) < 400_000


def test_the_table_has_one_line_per_run_and_no_number_where_there_is_none(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", left_out=("none-s2",))
    files = write_report([tmp_path / "s"], csv_path=tmp_path / "x.csv")
    assert files.csv is not None
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(files.csv.read_text()))}
    assert list(rows) == [cell.name for cell in GRID.cells()]
    for result in sweep.results:
        row = rows[result.cell.name]
        assert row["state"] == result.status.state
        if result.run is not None:
            assert float(row["top1"]) == top1_of(result.cell) and float(row["images"]) == 30_000
    assert rows["none-s2"]["top1"] == "" and rows["hard-l0.5-s0"]["temperature"] == ""
    assert "nan" not in report_csv(sweep).lower()


def test_paths_that_are_neither_runs_nor_one_sweep_are_refused(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s")
    with pytest.raises(ValueError, match="got none"):
        read([])
    with pytest.raises(ValueError, match="report it alone"):
        read([tmp_path / "s", tmp_path / "s" / "cells" / "none-s0"])
    with pytest.raises(RunError, match="neither a run"):
        read([tmp_path])
    (tmp_path / "s" / "sweep.json").write_text('{"grid": {"weights": [2]}}')
    with pytest.raises(RunError, match="grid: missing fields"):
        read([tmp_path / "s"])


# --- charts and colours -----------------------------------------------------------------------------------------------


def paths(chart: str, colour: int = 0) -> list[list[tuple[float, float]]]:
    """The pieces of a line of a chart, from its SVG."""
    drawn = re.findall(rf'<path d="([^"]*)" clip-path[^>]*stroke: var\(--s{colour}\)', chart)
    pieces = [piece for d in drawn for piece in d.split("M")[1:]]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", piece)] for piece in pieces]


def drawn(*lines: list[float], x: list[float] | None = None) -> str:
    """A chart of lines over 0, 1, 2 …"""
    series = [Series(name=f"line {n}", x=x or range(len(y)), y=y, colour=n) for n, y in enumerate(lines)]
    return line_chart(series, title="t & u", x_label="<x>", y_label="y")


def test_a_long_line_is_drawn_with_few_points_and_every_spike() -> None:
    values = [float(v) for v in stream(0, "long").uniforms(20_000)]
    values[7_000] = 1.5
    ((*points,),) = paths(drawn(values))
    heights = [y for _, y in points]
    assert len(points) < 4_000 and (points[0][0], points[-1][0]) == (46, 388)
    x, y = min(points, key=lambda point: point[1])
    assert x == pytest.approx(46 + 342 * 7_000 / 19_999, abs=0.3) and y < sorted(heights)[3] - 20


@pytest.mark.parametrize("case", range(12))
def test_ticks_are_told_apart_and_stay_in_the_chart(case: int) -> None:
    rng = stream(case, "ticks")
    low = (rng.uniform() - 0.5) * 10 ** rng.uniform(-6, 7)
    chart = drawn([low, low + max(abs(low) * 1e-3, 10 ** rng.uniform(-6, 7))])
    ticks = re.findall(r'text-anchor: end[^>]*y="([^"]*)"[^>]*>([^<]*)<', chart)
    assert 2 <= len(ticks) <= 7 and len({text for _, text in ticks}) == len(ticks)
    assert all(26 <= float(y) <= 210 and len(text) <= 7 for y, text in ticks)


def test_the_colours_of_figures_are_those_of_the_light_page() -> None:
    css = (Path(__file__).parent.parent / "student/report/templates/report.css").read_text()
    light = dict(re.findall(r"--(\w+):(#\w+)", css[: css.index("@media")]))
    assert [light[f"s{n}"] for n in range(8)] == list(SERIES)
    assert [light[name] for name in ("ink", "muted", "grid", "line")] == [INK, MUTED, GRID_COLOUR, LINE]
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn([1, 2], [2, 3])), "a colour that a dark page cannot change"


def test_the_ramp_rises_evenly_in_lightness_and_text_on_it_can_be_read() -> None:
    """L of CIELAB from luminance: near-equal steps, so that equal differences look equal; contrast as WCAG AA asks."""
    light = [116 * luminance(ramp(i / 20)) ** (1 / 3) - 16 for i in range(21)]
    steps = [after - before for before, after in itertools.pairwise(light)]
    assert min(steps) > 0 and max(steps) < 1.6 * min(steps)
    for i in range(101):
        bright, ink = luminance(ramp(i / 100)), luminance((0, 0, 0) if ink_on(ramp(i / 100)) == "#000" else (255,) * 3)
        assert (max(bright, ink) + 0.05) / (min(bright, ink) + 0.05) >= 4.5
    assert ramp(-1) == ramp(0) and ramp(2) == ramp(1)


def test_a_gap_is_a_gap_and_a_lonely_point_is_seen() -> None:
    nan = math.nan
    chart = drawn([1, 2, nan, 4, nan, 5])
    assert [len(piece) for piece in paths(chart)] == [2, 1, 1]
    assert chart.count("<use ") == 2, "a dot for each of the two lonely points"
    assert chart.count("<title>") == 4 and "nan" not in chart.lower()


@pytest.mark.parametrize("y", [[5.0], [5.0, 5.0], [0.0, 0.0], [-1e9, 1e9], [1e-9, 2e-9], [1e9, 1e9 + 1]])
def test_a_chart_of_any_range_has_coordinates_inside(y: list[float]) -> None:
    chart = drawn(y)
    assert "nan" not in chart and "inf" not in chart and "<x>" not in chart
    Page(chart)
    coordinates = [float(v) for v in re.findall(r' c?[xy]="([^"]*)"', chart)]
    assert coordinates and all(0 <= v <= 400 for v in coordinates)


def test_a_page_has_no_id_twice_and_every_reference_leads_somewhere(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s")
    html, page = page_of(tmp_path, tmp_path / "s")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#(\w+)', html)) <= set(ids)


@pytest.mark.parametrize(
    ("lines", "shown"),
    [([], False), ([[1.0]], False), ([[1.0, 1.0], [1.0]], False), ([[1.0], [2.0]], False), ([[1.0, 2.0]], True)],
)
def test_a_chart_without_a_change_is_not_worth_drawing(lines: list[list[float]], shown: bool) -> None:
    assert changes([Series(name="x", x=range(len(y)), y=y) for y in lines]) == shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "–"), (0, "0"), (1234567, "1,234,567"), (12345.67, "12,346"), (0.123456, "0.1235"), (93.5, "93.5")],
)
def test_numbers_are_short_and_never_nan(value: float, text: str) -> None:
    assert number(value) == text


# --- the teacher, and what the charts show ----------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["number", "run"])
def test_the_teacher_is_a_line_across_the_chart_of_top1_alone(tmp_path: Path, given: str) -> None:
    write_sweep(tmp_path / "s")
    write_run(tmp_path / "teacher", {}, 97.5)
    teacher = "97.5" if given == "number" else str(tmp_path / "teacher")
    html = write_report([tmp_path / "s"], html=tmp_path / "page.html", teacher=teacher).html.read_text()
    assert html.count("<title>teacher: 97.5</title>") == 1
    assert "top-1 of the teacher" in html and "<title>teacher" not in page_of(tmp_path, tmp_path / "s")[0]


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize(
    ("taught_by", "expected"),
    [
        ("best", "teacher, best epoch 2 of 6: 97.5"),
        ("last", "teacher, last epoch 6 of 6: 91"),
        ("several", "teacher, best epoch 2 of 6: 97.5"),
        ("online", "teacher, last epoch 6 of 6: 91"),
        ("another", "teacher, best epoch 2 of 6: 97.5"),
        ("nobody", "teacher, best epoch 2 of 6: 97.5"),
    ],
)
def test_the_line_of_a_teacher_is_of_the_weights_that_taught(
    tmp_path: Path, taught_by: str, expected: str, sweep: bool
) -> None:
    """The page drew the last epoch's 91 % while the students had learnt from the best one's answers."""
    digests = {name: write_teacher(tmp_path / "teacher", name) for name in (LAST_WEIGHTS, BEST_WEIGHTS)}
    digest = {"best": digests[BEST_WEIGHTS], "last": digests[LAST_WEIGHTS], "online": digests[LAST_WEIGHTS]}
    spec = {"name": "test_resnet", "weights_sha256": digest.get(taught_by, "0" * 64), "precision": "fp32"}
    spec |= {"input_size": 32, "num_classes": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    cached = {"kind": "cache", "teacher": spec}
    best = {"kind": "cache", "teacher": {**spec, "weights_sha256": digests[BEST_WEIGHTS]}}
    others = {"nobody": {"kind": "none"}, "online": {"kind": "online", **spec}}
    others["several"] = {"kind": "several", "teachers": [{"weight": 0.5, **cached}, {"weight": 0.5, **best}]}
    if sweep:
        write_sweep(tmp_path / "s")
    else:
        write_run(tmp_path / "s", {}, 99.0)
    for path in (tmp_path / "s").rglob("config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "teacher": others.get(taught_by, cached)}))
    files = write_report([tmp_path / "s"], html=tmp_path / "page.html", teacher=str(tmp_path / "teacher"))
    html = files.html.read_text()
    assert re.findall(r"<title>(teacher.*?)</title>", html) == [expected]
    name, _, percent = expected.partition(": ")
    assert f"top-1 of the {name}" in html and files.teacher == Level(name, float(percent))


def write_teacher(out: Path, name: str) -> str:
    """One file of the weights of a teacher's run whose second epoch was the best; returns its digest."""
    if not out.is_dir():
        write_run(out, {"recipe": {"model": "test_resnet", "epochs": 6}}, 91.0)
        more = {"epochs": 6, "best_epoch": 1, "best_top1": 97.5, "best_weights": BEST_WEIGHTS}
        path = out / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    state = {"weight": torch.full((3, 3), float(name == BEST_WEIGHTS))}
    said = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "class_names": [],
        "recipe": {"model": "test_resnet", "model_args": {}},
    }
    save_file(state, out / name, {METADATA_KEY: json.dumps(said)})
    return weights_sha256(state)


@pytest.mark.parametrize("teacher", ["-1", "101", "nan"])
def test_a_teacher_beyond_percent_is_refused(tmp_path: Path, teacher: str) -> None:
    write_run(tmp_path / "x", {}, 90.0)
    with pytest.raises(ValueError, match="top-1 in percent"):
        write_report([tmp_path / "x"], teacher=teacher)


def test_curves_show_every_epoch_counted_from_1(tmp_path: Path) -> None:
    """The first epochs used to lie outside of the frame, to the left and above."""
    write_run(tmp_path / "x", {}, 90.0, epochs=24)
    html, page = page_of(tmp_path, tmp_path / "x")
    chart = html[html.index('aria-label="Top-1 on the validation set"') :].split("</svg>")[0]
    box = re.search(r'<clipPath[^>]*><rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', chart)
    assert box is not None
    left, top, width, height = map(float, box.groups())
    (points,) = paths(chart)
    assert len(points) == 24
    assert all(left <= x <= left + width and top <= y <= top + height for x, y in points)
    assert re.search(r'x="46" y="[^"]*">1</text>', chart), "the axis begins where the data do"
    assert "24 (90.0 %)" in page.words, "the best epoch is the last, the 24th"


@pytest.mark.parametrize(
    ("top1", "expected"),
    [([50, 90, 90, 70], 2), ([90, 90, 90], 2), ([0.0, 0.0], 1), ([90, 40], 0), ([None, 80, None], 1), ([None], -1)],
)
def test_the_best_epoch_is_the_one_whose_weights_were_kept(
    tmp_path: Path, top1: list[float | None], expected: int
) -> None:
    """Of equal epochs the page named the first, while train-teacher keeps the weights of the last and says so."""
    write_run(tmp_path / "x", {}, 90.0, epochs=0)
    lines = [
        {"kind": "epoch", "step": n + 1, "epoch": n, **({} if value is None else {"val": {"top1": value}})}
        for n, value in enumerate(top1)
    ]
    (tmp_path / "x" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with RunLog(tmp_path / "x") as log:
        assert log.best_epoch() == read_run(tmp_path / "x").best_epoch()
        assert log.best_epoch()[0] == expected
    cell = f">{expected + 1} (" in page_of(tmp_path, tmp_path / "x")[0]
    assert cell == (expected >= 0)


def test_what_never_changes_is_a_sentence_and_no_chart(tmp_path: Path) -> None:
    write_run(tmp_path / "x", {}, 90.0, epochs=3)
    html, page = page_of(tmp_path, tmp_path / "x")
    assert 'aria-label="Learning rate"' not in html
    assert "learning rate 0.001" in page.words


def test_a_page_begins_with_its_result_in_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"recipe": {"model": "deit_tiny"}, "teacher": {"num_classes": 10}}, 91.25)
    write_run(tmp_path / "b", {"recipe": {"model": "deit_tiny"}, "teacher": {"num_classes": 10}}, 93.5)
    one = page_of(tmp_path, tmp_path / "a")[1].words
    assert "a reached 91.2 % top-1 on the validation set." in one
    assert "1 run · deit_tiny · 10 classes · 30,000 images" in one and "points" not in one
    html = write_report([tmp_path / "a", tmp_path / "b"], html=tmp_path / "p.html", teacher="95").html.read_text()
    assert "b reached 93.5 % top-1 on the validation set, 2.2 points more than a; that is 1.5 points less than" in html
    write_sweep(tmp_path / "s")
    assert "The best mean top-1 is" in page_of(tmp_path, tmp_path / "s")[1].words


def test_a_report_compares_finished_runs_only_and_says_the_noise(tmp_path: Path) -> None:
    """A difference of one photo of a hundred is no result; a run that was stopped is none either."""
    for name, top1, finished in (("a", 26.0, True), ("b", 25.0, True), ("c", 90.0, False)):
        write_run(tmp_path / name, {"teacher": {"num_classes": 5}, "recipe": {"epochs": 20}}, top1, finished=finished)
        if finished:
            path = tmp_path / name / "summary.json"
            more = {"validation_images": 100, "validation_majority": 20.0, "seconds": 58.0}
            path.write_text(json.dumps(json.loads(path.read_text()) | more))
    same = page_of(tmp_path, tmp_path / "a", tmp_path / "a")[1].words
    assert "points more" not in same and "as many as" in same, "no 0.0 points more"
    html, page = page_of(tmp_path, *(tmp_path / name for name in "abc"))
    lead = "a reached 26 % of 100 validation images, 1.0 points more than b, within the noise of ± 12.1 points"
    assert lead in page.words and "Always naming the largest class gives 20 %." in page.words
    assert "Not compared, because unfinished: c." in page.words and "unfinished: step 60, 6 of 20 epochs" in page.words
    assert "top-5" not in html and "58.0 s" in page.words and "hours" not in page.words


def test_a_teacher_far_above_the_curves_does_not_flatten_them(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {}, 26.0)
    html = write_report([tmp_path / "a"], html=tmp_path / "p.html", teacher="93").html.read_text()
    assert "The teacher reaches 93.0 %, outside this chart." in html
