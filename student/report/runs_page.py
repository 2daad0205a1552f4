"""The page that compares runs: their results, their curves, and what differs between their configurations."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from shards.text.figures import accuracy, count, duration, noise, plural
from shards.values import flat
from student.learn.losses.table import LOSSES, NONE
from student.report.charts import Level, Series, changes, fixed, number
from student.report.drawing import line_chart
from student.report.page import Tile, html, legend, page, table
from student.run.run_reader import Point, Run


class _Curve(NamedTuple):
    metric: str
    title: str
    y_label: str
    caption: str = ""
    factor: float = 1.0


_CURVES = (
    _Curve("top1", "Top-1 on the validation set", "top-1, %", "Average of both heads where the model has two."),
    _Curve("loss", "Training loss", "loss", "(1 − λ) · label loss + λ · teacher loss: comparable at equal λ."),
    _Curve("base_loss", "Label loss", "loss", "Against the labels; comparable between runs."),
    _Curve("distill_loss", "Teacher loss", "loss", "Against the teacher; comparable for one kind of loss and one τ."),
    _Curve(
        "teacher_agreement",
        "Agreement with the teacher",
        "training images, %",
        "The same most likely class.",
        100.0,
    ),
    _Curve("student_entropy", "Entropy of the student", "nats", "At τ = 1, on training images."),
    _Curve("lr", "Learning rate", "lr"),
    _Curve("images_per_s", "Throughput", "images/s"),
    _Curve("data_wait_share", "Waiting for data", "time, %", "0: rendering keeps up with training.", 100.0),
)


def runs_page(runs: Sequence[Run], *, teacher: Level | None = None) -> str:
    """The HTML page of several runs, in the order given; `teacher` is its top-1."""
    names = labels(runs)
    best = _best(runs)
    finished = sum(run.finished for run in runs)
    items = [Tile(f"{finished} of {len(runs)}", "runs finished")]
    if best is not None:
        num_images = _validated(best)
        label = f"best top-1: {names[list(runs).index(best)]}" if len(runs) > 1 else "top-1"
        items.insert(0, Tile(accuracy(best.result("top1"), num_images or 1000).removesuffix(" %"), label, "%"))
        if num_images:
            around = f"± {noise(best.result('top1'), num_images):.1f}"
            items.append(Tile(around, f"noise of {count(num_images, 'validation image')} (95 %)", "points"))
        if math.isfinite(largest := best.result("validation_majority")):
            largest_words = accuracy(largest, num_images or 1000).removesuffix(" %")
            items.append(Tile(largest_words, "always naming the largest class", "%"))
    if teacher is not None:
        digits = _validated(best) if best is not None else 0
        items.append(Tile(accuracy(teacher.y, digits or 1000).removesuffix(" %"), f"top-1 of the {teacher.name}", "%"))
    checked = [value for run in runs if math.isfinite(value := run.result("pixels_checked"))]
    if checked and sum(checked):
        items.append(Tile(number(sum(checked)), "views compared with the teacher's, none differed"))
    body = html.paragraph(_result_in_words(runs, names, best, teacher), "lead") + html.tiles(items)
    body += html.section("Results", _results(runs, names, best)) + notes(runs, names)
    body += html.section("Curves", _curves(runs, names, teacher), "Hover a line for its numbers.")
    body += html.section("What differs", _differences(runs, names), "Only settings that are not the same in all runs.")
    return page("Student runs", _subtitle(runs), body)


def notes(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """Render what finished runs suffer from, each sentence once with its runs; nothing where all are well."""
    suffering: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        for sentence in run.summary.get("diagnosis", ()):
            suffering.setdefault(str(sentence), []).append(name)
    if not suffering:
        return Markup("")
    head, rows = ("run", "advice"), [(", ".join(those), text) for text, those in suffering.items()]
    return html.section("Notes", html.card(table(head, rows, caption="Notes", wrap_columns=(1,))))


def _subtitle(runs: Sequence[Run]) -> str:
    """Summarise the number of runs, and what their files say alike of model, classes and images."""
    parts = [count(len(runs), "run")]
    settings = [dict(flat(run.config)) for run in runs]
    counts = [{key.rpartition(".")[2]: value for key, value in sorted(known.items())} for known in settings]
    for name, noun in (("model", ""), ("num_classes", "class"), ("epochs", "epoch")):
        if len({repr(known.get(name)) for known in counts}) == 1 and counts[0].get(name) is not None:
            parts.append(count(counts[0][name], noun) if noun else str(counts[0][name]))
    seen = {run.result("images") for run in runs}
    if len(seen) == 1 and math.isfinite(images := seen.pop()):
        parts.append(f"{number(images)} {plural(images, 'image')} seen in training")
    for metric, noun in (("training_images", "training image"), ("validation_images", "validation image")):
        sizes = {run.result(metric) for run in runs}
        if len(sizes) == 1 and math.isfinite(size := sizes.pop()):
            parts.append(count(int(size), noun))
    written = [time for run in runs if (time := run.written)]
    return " · ".join([*parts, *([f"{max(written):%Y-%m-%d %H:%M}"] if written else [])])


def _best(runs: Sequence[Run]) -> Run | None:
    """The run with the highest top-1 among those that finished; among all where none has."""
    scored = [run for run in runs if math.isfinite(run.result("top1"))]
    finished = [run for run in scored if run.finished]
    return max(finished or scored, key=lambda run: run.result("top1"), default=None)


def _validated(run: Run) -> int:
    """On how many images a run was validated; 0 where it does not say."""
    value = run.result("validation_images")
    return int(value) if math.isfinite(value) else 0


def _result_in_words(runs: Sequence[Run], names: Sequence[str], best: Run | None, teacher: Level | None) -> str:
    """The result as a sentence: the best finished run, how it compares, and how much of that is noise."""
    if best is None:
        return "No run has been evaluated on validation images yet."
    top1, num_images = best.result("top1"), _validated(best)
    known = num_images or 1000
    name = names[list(runs).index(best)]
    of = f" of {count(num_images, 'validation image')}" if num_images else " top-1 on the validation set"
    text = f"{name} reached {accuracy(top1, known)}{of}"
    if not best.finished:
        return f"{text} so far: no run has finished, so nothing is compared yet."
    others = [(run.result("top1"), other) for run, other in zip(runs, names, strict=True) if run is not best]
    finished = [run.finished for run in runs if run is not best]
    others = [pair for pair, done in zip(others, finished, strict=True) if done and math.isfinite(pair[0])]
    if others:
        second, other = max(others)
        gain = round(top1 - second, 1)
        text += f", {f'{gain:.1f} points more than' if gain else 'as many as'} {other}"
        if num_images:
            doubt = math.hypot(noise(top1, num_images), noise(second, num_images))
            text += f", {'more than' if top1 - second > doubt else 'within'} the noise of ± {doubt:.1f} points"
    if teacher is not None:
        side = "more" if top1 >= teacher.y else "less"
        text += f"; that is {abs(top1 - teacher.y):.1f} points {side} than the teacher"
    if math.isfinite(largest := best.result("validation_majority")):
        text += f". Always naming the largest class gives {accuracy(largest, known)}"
    unfinished = [name for run, name in zip(runs, names, strict=True) if not run.finished]
    return text + "." + (f" Not compared, because unfinished: {', '.join(unfinished)}." if unfinished else "")


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
    """The table of results, without columns that say nothing of these runs."""
    classes = {value for run in runs for key, value in flat(run.config) if key.rpartition(".")[2] == "num_classes"}
    few = bool(classes) and all(isinstance(value, int) and value <= 5 for value in classes)
    metrics = [("top1", "top-1 %")] + [("top5", "top-5 %")] * (not few)
    if any(math.isfinite(run.result("dist_top1")) for run in runs):
        metrics += [("cls_top1", "CLS %"), ("dist_top1", "DIST %")]
    head = ["run", *(title for _, title in metrics), "distillation", "best epoch"]
    head += ["agreement %", "epochs", "time", "state"]
    rows = [
        (
            name,
            *(accuracy(run.result(metric), _validated(run) or 1000).removesuffix(" %") for metric, _ in metrics),
            distillation(run),
            _best_epoch(run),
            fixed(100 * run.result("teacher_agreement"), 1),
            len(run.epochs),
            duration(run.result("seconds")).replace("?", "–"),
            run.state,
        )
        for run, name in zip(runs, names, strict=True)
    ]
    best_row = list(runs).index(best) if best is not None else -1
    text = (0, 1 + len(metrics), len(head) - 1)
    return html.card(table(head, rows, caption="Results", text_columns=text, best_row=best_row))


def distillation(run: Run) -> str:
    """Describe how the run was taught."""
    kind = run.setting("distill", "none")
    if kind == NONE:
        return "no teacher"
    loss = LOSSES.get(kind)  # a run of a newer version may name a loss that is not here
    text = f"{kind}, λ {run.setting('distill_weight', math.nan):g}"
    tau = f", τ {run.setting('temperature', math.nan):g}" if loss is not None and loss.uses_temperature else ""
    reduction = run.setting("reduction", "textbook")  # λ means something else in each
    return text + tau + (f", {reduction} reduction" if reduction != "textbook" else "")


def _best_epoch(run: Run) -> str:
    epoch, value = run.best_epoch()
    return f"{epoch + 1} ({accuracy(value, _validated(run) or 1000)})" if epoch >= 0 else "–"


def _curves(runs: Sequence[Run], names: Sequence[str], teacher: Level | None) -> Markup:
    figures, constant = [], []
    for shown in _CURVES:
        lines = (
            curve(run, name, shown.metric, colour, factor=shown.factor)
            for colour, (run, name) in enumerate(zip(runs, names, strict=True))
        )
        series = [line for line in lines if line.y]
        if changes(series):
            level, above = _level(series, teacher) if shown.metric == "top1" else (None, "")
            chart = line_chart(series, title=shown.title, x_label="epoch", y_label=shown.y_label, level=level)
            figures.append(html.figure(shown.title, chart, f"{shown.caption}{above}", key=legend(series, level)))
        elif len(values := {y for line in series for y in line.y}) == 1:
            constant.append(f"{shown.title.lower()} {number(values.pop())} ({shown.y_label})")
    body = html.grid(figures) if figures else html.empty("No metrics yet.")
    return body + (html.paragraph(f"Constant, and not drawn: {'; '.join(constant)}.") if constant else "")


def _level(series: Sequence[Series], teacher: Level | None) -> tuple[Level | None, str]:
    """The teacher's line where the curves keep half of the chart beside it; else a sentence in place of the line."""
    if teacher is None:
        return None, ""
    values = [y for line in series for y in line.y if math.isfinite(y)]
    if max(values) - min(values) < 0.5 * (max(*values, teacher.y) - min(*values, teacher.y)):
        return None, f" The teacher reaches {teacher.y:.1f} %, outside this chart."
    return teacher, ""


def curve(run: Run, name: str, metric: str, colour: int, *, factor: float = 1.0) -> Series:
    """A metric times `factor` over epochs, which count from 1.

    Over fractions of epochs, from the steps, where the run has too few epochs for a curve.
    """
    points: Sequence[Point] = run.epochs
    to_x: Callable[[Point], float] = lambda point: point.epoch + 1.0  # noqa: E731
    if len(points) < 4 and _finite(run.steps, metric) > _finite(points, metric):
        per_epoch = _steps_per_epoch(run)
        points, to_x = run.steps, lambda point: point.step / per_epoch
    # Runs may be evaluated only every few epochs; the line joins what was measured.
    points = [point for point in points if math.isfinite(point[metric])]
    return Series(name=name, x=[to_x(p) for p in points], y=[factor * p[metric] for p in points], colour=colour)


def _finite(points: Sequence[Point], metric: str) -> int:
    """Count the points that have the metric."""
    return sum(math.isfinite(point[metric]) for point in points)


def _steps_per_epoch(run: Run) -> float:
    if run.epochs:
        return run.epochs[-1].step / (run.epochs[-1].epoch + 1)
    return max(point.step for point in run.steps) / (run.steps[-1].epoch + 1)


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
        else html.empty("All settings are equal.")
    )
    equal = "".join(f"{key} = {_value(configs[0].get(key))}\n" for key in same)
    return html.card(body + html.details(f"Equal settings: {len(same)}", equal))


def _value(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
