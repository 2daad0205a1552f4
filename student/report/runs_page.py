"""The page that compares runs: their results, their curves, and what differs between their configurations."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from shards.text.figures import count
from student.learn.losses.table import LOSSES, NONE
from student.report.charts import Level, Series, changes, fixed, number
from student.report.drawing import line_chart
from student.report.page import (
    Markup,
    Tile,
    card,
    details,
    empty,
    figure,
    grid,
    legend,
    page,
    paragraph,
    section,
    table,
    tiles,
)
from student.run.run_reader import Point, Run


class _Curve(NamedTuple):
    metric: str
    title: str
    y_label: str
    caption: str = ""
    factor: float = 1.0


_CURVES = (
    _Curve("top1", "Top-1 on the validation set", "top-1, %", "Average of both heads where the model has two."),
    _Curve("loss", "Training loss", "loss", "(1 − λ)·base + λ·distillation: not comparable between different λ."),
    _Curve("base_loss", "Base loss", "loss", "The label's part, comparable between runs."),
    _Curve("distill_loss", "Distillation loss", "loss", "The teacher's part; its scale depends on the loss and on τ."),
    _Curve(
        "teacher_agreement", "Agreement with the teacher", "training images, %", "With the same first class.", 100.0
    ),
    _Curve("student_entropy", "Entropy of the student", "nats", "At τ = 1, on training images."),
    _Curve("lr", "Learning rate", "lr"),
    _Curve("images_per_s", "Throughput", "images/s"),
    _Curve("data_wait_share", "Waiting for data", "time, %", "0 means the loader keeps up.", 100.0),
)


def runs_page(runs: Sequence[Run], *, title: str = "Student runs", teacher: Level | None = None) -> str:
    """The HTML page of several runs, in the order given; `teacher` is its top-1."""
    names = labels(runs)
    scored = [run for run in runs if math.isfinite(run.result("top1"))]
    best = max(scored, key=lambda run: run.result("top1"), default=None)
    finished = sum(run.finished for run in runs)
    items = [Tile(f"{finished} of {len(runs)}", "runs finished")]
    if best is not None:
        label = f"best top-1: {names[list(runs).index(best)]}" if len(runs) > 1 else "top-1"
        items.insert(0, Tile(f"{best.result('top1'):.2f}", label, "%"))
    if best is not None and len(scored) > 1:
        spread = best.result("top1") - min(run.result("top1") for run in scored)
        items.append(Tile(f"{spread:.2f}", "between best and last", "points"))
    if teacher is not None:
        items.append(Tile(f"{teacher.y:.2f}", "top-1 of the teacher", "%"))
    checked = [value for run in runs if math.isfinite(value := run.result("pixels_checked"))]
    if checked:
        items.append(Tile(number(sum(checked)), "views checked by digest, none differed"))
    body = paragraph(_result_in_words(runs, names, best, teacher), "lead") + tiles(items)
    body += section("Results", _results(runs, names, best)) + notes(runs, names)
    body += section("Curves", _curves(runs, names, teacher), "Hover a line for its numbers.")
    body += section("What differs", _differences(runs, names), "Only settings that are not the same in all runs.")
    return page(title, _subtitle(runs), body)


def notes(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """What finished runs suffer from, each sentence once with the names of its runs; nothing where all are well."""
    suffering: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        for sentence in run.summary.get("diagnosis", ()):
            suffering.setdefault(str(sentence), []).append(name)
    if not suffering:
        return Markup("")
    head, rows = ("run", "what it suffers from"), [(", ".join(those), text) for text, those in suffering.items()]
    return section("Notes", card(table(head, rows, caption="Notes", text_columns=(0, 1))))


def _subtitle(runs: Sequence[Run]) -> str:
    """How many runs, and what their files say alike of model, classes and images."""
    parts = [count(len(runs), "run")]
    settings = [dict(flat(run.config)) for run in runs]
    counts = [{key.rpartition(".")[2]: value for key, value in sorted(known.items())} for known in settings]
    for name, noun in (("model", ""), ("num_classes", "class"), ("epochs", "epoch")):
        if len({repr(known.get(name)) for known in counts}) == 1 and counts[0].get(name) is not None:
            parts.append(count(counts[0][name], noun) if noun else str(counts[0][name]))
    seen = {run.result("images") for run in runs}
    if len(seen) == 1 and math.isfinite(images := seen.pop()):
        parts.append(f"{number(images)} images seen in training")
    return " · ".join(parts)


def _result_in_words(runs: Sequence[Run], names: Sequence[str], best: Run | None, teacher: Level | None) -> str:
    """The result as a sentence: which run is best, by how much, and how far it is from the teacher."""
    if best is None:
        return "No run has been evaluated on validation images yet."
    top1 = best.result("top1")
    name = names[list(runs).index(best)]
    text = f"{name} reached {top1:.2f} % top-1 on the validation set" + ("" if best.finished else " so far")
    others = [(run.result("top1"), other) for run, other in zip(runs, names, strict=True) if run is not best]
    if others := [(value, other) for value, other in others if math.isfinite(value)]:
        second, other = max(others)
        text += f", {top1 - second:.2f} points more than {other}"
    if teacher is not None:
        side = "more" if top1 >= teacher.y else "less"
        text += f", {abs(top1 - teacher.y):.2f} points {side} than the teacher"
    return text + "."


def labels(runs: Sequence[Run]) -> list[str]:
    """Short unique names: the directory's name, with as many parents as it takes to tell all apart."""
    depth = 1
    longest = max((len(run.path.resolve().parts) for run in runs), default=1)
    while depth < longest:
        names = ["/".join(run.path.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
        depth += 1
    return [str(run.path) for run in runs]


def _results(runs: Sequence[Run], names: Sequence[str], best: Run | None) -> Markup:
    head = ["run", "top-1 %", "top-5 %", "CLS %", "DIST %", "distillation"]
    head += ["best epoch", "agreement %", "epochs", "hours", "state"]
    rows = [
        (
            name,
            *(fixed(run.result(metric), 2) for metric in ("top1", "top5", "cls_top1", "dist_top1")),
            distillation(run),
            _best_epoch(run),
            fixed(100 * run.result("teacher_agreement"), 1),
            len(run.epochs),
            fixed(run.result("seconds") / 3600, 3),
            "finished" if run.finished else "unfinished",
        )
        for run, name in zip(runs, names, strict=True)
    ]
    best_row = list(runs).index(best) if best is not None else -1
    return card(table(head, rows, caption="Results", text_columns=(0, 5, 10), best_row=best_row))


def distillation(run: Run) -> str:
    """How the run was taught, in words."""
    kind = run.setting("distill", "none")
    if kind == NONE:
        return "no teacher"
    loss = LOSSES.get(kind)  # a run of a newer version may name a loss that is not here
    text = f"{kind}, λ {run.setting('distill_weight', math.nan):g}"
    tau = f", τ {run.setting('temperature', math.nan):g}" if loss is not None and loss.uses_temperature else ""
    reduction = run.setting("reduction", "textbook")  # λ means something else in each
    return text + tau + (f", {reduction} reduction" if reduction != "textbook" else "")


def _best_epoch(run: Run) -> str:
    value, epoch = run.best("top1")
    return f"{epoch + 1} ({value:.2f})" if epoch >= 0 else "–"


def _curves(runs: Sequence[Run], names: Sequence[str], teacher: Level | None) -> Markup:
    figures, constant = [], []
    for shown in _CURVES:
        lines = (
            curve(run, name, shown.metric, colour, factor=shown.factor)
            for colour, (run, name) in enumerate(zip(runs, names, strict=True))
        )
        series = [line for line in lines if line.y]
        if changes(series):
            level = teacher if shown.metric == "top1" else None
            chart = line_chart(series, title=shown.title, x_label="epoch", y_label=shown.y_label, level=level)
            figures.append(figure(shown.title, chart, shown.caption, key=legend(series, level)))
        elif len(values := {y for line in series for y in line.y}) == 1:
            constant.append(f"{shown.title.lower()} {number(values.pop())} ({shown.y_label})")
    body = grid(figures) if figures else empty("No metrics yet.")
    return body + (paragraph(f"Constant, and not drawn: {'; '.join(constant)}.") if constant else "")


def curve(run: Run, name: str, metric: str, colour: int, *, factor: float = 1.0) -> Series:
    """A metric times `factor` over epochs, which count from 1.

    Over fractions of epochs, from the steps, where the run has too few epochs for a curve.
    """
    points: Sequence[Point] = run.epochs
    to_x: Callable[[Point], float] = lambda point: point.epoch + 1.0  # noqa: E731
    if len(points) < 4 and any(math.isfinite(point[metric]) for point in run.steps):
        per_epoch = _steps_per_epoch(run)
        points, to_x = run.steps, lambda point: point.step / per_epoch
    # Runs may be evaluated only every few epochs; the line joins what was measured.
    points = [point for point in points if math.isfinite(point[metric])]
    return Series(name=name, x=[to_x(p) for p in points], y=[factor * p[metric] for p in points], colour=colour)


def _steps_per_epoch(run: Run) -> float:
    if run.epochs:
        return run.epochs[-1].step / (run.epochs[-1].epoch + 1)
    return max(point.step for point in run.steps) / (run.steps[-1].epoch + 1)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    configs = [dict(flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differ = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    same = [key for key in keys if key not in differ]
    shown = [[key, *(_value(config.get(key)) for config in configs)] for key in differ]
    columns = tuple(range(len(runs) + 1))
    body = (
        table(("setting", *names), shown, caption="Settings that differ", text_columns=columns)
        if shown
        else empty("All settings are equal.")
    )
    equal = "".join(f"{key} = {_value(configs[0].get(key))}\n" for key in same)
    return card(body + details(f"Equal settings: {len(same)}", equal))


def _value(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
