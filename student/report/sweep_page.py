"""The page of a sweep: the map, what can be believed of it, the curves, the record's share in it, and the cost."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup

from shards.text.figures import byte_size, count, plural
from shards.values import flat
from student.learn.losses.table import NONE
from student.report.charts import Level, fixed, number
from student.report.curves import sweep_curves, views_curve
from student.report.heat_map import (
    FAIR_ERROR,
    GOOD_ERROR,
    Leader,
    MapStyle,
    error_word,
    fidelities,
    heat_map,
    loss_errors,
)
from student.report.page import Tile, html, page, table
from student.report.runs_page import notes
from student.report.stats import (
    ForwardCount,
    SeedGroup,
    best,
    best_first,
    forward_count,
    gains,
    groups,
    mean_gain,
    pooled_spread,
    setting_label,
    told_apart,
)
from student.sweep.sweep_directory import STATES, Sweep

_TOP1 = MapStyle(metric="top1", digits=2)
_AGREEMENT = MapStyle(metric="teacher_agreement", digits=1, factor=100.0)


def sweep_page(sweep: Sweep, *, teacher: Level | None = None) -> str:
    """The HTML page of a sweep, whatever state it is in; `teacher` is its top-1."""
    all_groups = groups(sweep)
    top = best(all_groups)
    noise = pooled_spread(all_groups)
    body = html.paragraph(_result_in_words(all_groups, top), "lead") + _summary(sweep, all_groups, top, teacher)
    body += _failures(sweep)
    body += html.section("Top-1 over λ and τ", _maps(sweep, all_groups, top, noise), _map_note(sweep, noise))
    body += html.section(
        "Curves", sweep_curves(all_groups, top, teacher), "Mean over seeds; the band reaches from lowest to highest."
    )
    if len(sweep.grid.teachers) > 1:
        body += html.section("Which teachers?", _teachers(sweep, all_groups))
    if len(sweep.grid.views_used) > 1:
        body += html.section("How many views are enough?", views_curve(all_groups))
    body += html.grid([_record(sweep), _cost(sweep)], wide=True)
    body += html.section("Every cell", _cells(all_groups, top, noise))
    runs = [result.run for result in sweep.results if result.run is not None]
    body += notes(runs, [run.name for run in runs])
    body += _settings(sweep)
    return page(f"Sweep {sweep.name}", _subtitle(sweep), body)


def _subtitle(sweep: Sweep) -> str:
    cache, common = sweep.facts.get("cache", {}), dict(flat(sweep.common))
    model = next((str(value) for key, value in common.items() if key.split(".")[-1] == "model"), "")
    parts = [model and f"student {model}", cache.get("teacher", "") and f"teacher {cache['teacher']}"]
    parts.append(cache.get("record", "") and f"record {cache['record']}")
    if cache.get("num_samples"):
        parts.append(count(int(cache["num_samples"]), "training image"))
    seeds = len(sweep.grid.seeds)
    return " · ".join([part for part in parts if part] + [f"{seeds} seed{'s' if seeds > 1 else ''}"])


def _result_in_words(all_groups: Sequence[SeedGroup], top: SeedGroup | None) -> str:
    """The result as a sentence: the best cell, and what the teacher gained there."""
    if top is None:
        return "No cell has finished yet."
    text = f"The best mean top-1 is {with_spread(top, 'top1', 2)} % with {top.label}"
    gained = gains(top, all_groups)
    return text + (f": {mean_gain(gained)} points over no teacher." if gained else ".")


def _summary(sweep: Sweep, all_groups: Sequence[SeedGroup], top: SeedGroup | None, teacher: Level | None) -> Markup:
    states = Counter(result.status.state for result in sweep.results)
    items = []
    if top is not None:
        spread = top.spread("top1")
        over = f"± {spread:.2f} over {len(top.runs)} seeds; " if math.isfinite(spread) else ""
        items.append(Tile(f"{top.mean('top1'):.2f}", f"{over}best top-1: {top.label}", "%"))
        if gained := gains(top, all_groups):
            low, high = min(gained), max(gained)
            reach = f"{low:+.2f} to {high:+.2f} over {len(gained)} seeds" if len(gained) > 1 else "one seed"
            items.append(Tile(mean_gain(gained), f"over no teacher, seed by seed: {reach}", "points"))
        if math.isfinite(agreement := top.mean("teacher_agreement")):
            epoch = top.runs[0].result("images") / top.runs[0].result("epochs")
            of = f"of {epoch:,.0f} images" if math.isfinite(epoch) else "of the images"
            words = f"{of} of the last epoch: best cell agrees with the teacher"
            items.append(Tile(f"{100 * agreement:.1f}", words, "%"))
        if math.isfinite(largest := top.mean("validation_majority")):
            images = top.mean("validation_images")
            items.append(Tile(f"{largest:.1f}", f"always naming the largest class of {images:,.0f} images", "%"))
    if teacher is not None:
        items.append(Tile(f"{teacher.y:.2f}", f"top-1 of the {teacher.name}", "%"))
    forwards = forward_count(sweep)
    if math.isfinite(forwards.saved):
        items.append(Tile(compact(forwards.saved), _saved_text(forwards)))
        if math.isfinite(forwards.break_even):
            items.append(
                Tile(
                    fixed(forwards.break_even, 2),
                    "students trained with the teacher in the loop would cost as many forwards as the cache",
                )
            )
    others = ", ".join(f"{states[state]} {state}" for state in STATES[1:] if states[state])
    items.append(Tile(f"{states['done']} of {len(sweep.results)}", f"cells done{f'; {others}' if others else ''}"))
    return html.tiles(items)


def _saved_text(forwards: ForwardCount) -> str:
    return "teacher forwards saved" if forwards.saved >= 0 else "teacher forwards: the cache has not paid off yet"


def with_spread(group: SeedGroup, metric: str, digits: int, *, factor: float = 1.0) -> str:
    """Mean ± standard deviation over seeds, times `factor`."""
    spread = factor * group.spread(metric)
    tail = f" ± {spread:.{digits}f}" if math.isfinite(spread) else ""
    return fixed(factor * group.mean(metric), digits) + tail


def compact(value: float) -> str:
    """A large count in words a person can hold: 12.3 M."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            scale = 1e3 if name == "k" else unit
            return f"{value / scale:.3g} {name}"
    return f"{value:,.0f}"


def _failures(sweep: Sweep) -> Markup:
    failed = [result for result in sweep.results if result.status.state == "failed"]
    if not failed:
        return Markup()
    rows = [(result.cell.name, result.status.attempts, result.status.error) for result in failed]
    body = table(("cell", "tries", "error"), rows, caption="Failed cells", wrap_columns=(2,))
    return html.section(f"{len(failed)} failed", html.card(body), "Run the same ablate command again to retry them.")


def _maps(sweep: Sweep, all_groups: Sequence[SeedGroup], top: SeedGroup | None, noise: float) -> Markup:
    cards = []
    for views, teachers in itertools.product(sweep.grid.views_used, sweep.grid.teachers):
        which = (f", {count(views, 'view')}" if views is not None else "") + (
            f", taught by {teachers}" if teachers else ""
        )
        for style, title in ((_TOP1, "Top-1, %"), (_AGREEMENT, "Agreement with the teacher, % of training images")):
            is_top1 = style is _TOP1
            if not is_top1 and not any(group.values(style.metric) for group in all_groups):
                continue
            body = heat_map(
                all_groups,
                sweep.grid,
                style=style,
                views_used=views,
                teachers=teachers,
                leader=Leader(top, noise) if is_top1 else Leader(),
                facts=sweep.facts if is_top1 else {},
                caption=title + which,
            )
            cards.append(html.card(body, title=title + which))
    return html.grid(cards, wide=True)


def _teachers(sweep: Sweep, all_groups: Sequence[SeedGroup]) -> Markup:
    """For each set of teachers its best cell, and what that gains over no teacher."""
    rows = []
    for teachers in sweep.grid.teachers:
        top = best([group for group in all_groups if group.cell.distill != NONE and group.cell.teachers == teachers])
        rows.append(
            (
                teachers or "all",
                with_spread(top, "top1", 2) if top is not None else "–",
                mean_gain(gains(top, all_groups) if top is not None else []),
                setting_label(replace(top.cell, teachers="")) if top is not None else "not yet",
            )
        )
    body = table(("teachers", "top-1, %", "gain", "best cell"), rows, caption="Teachers", text_columns=(0, 3))
    return html.card(
        body, note="The best of each set's cells; gain as below. A set a+b is the caches a and b together."
    )


def _map_note(sweep: Sweep, noise: float) -> str:
    if len(sweep.grid.seeds) < 2:
        return "One seed per cell: how far cells differ by chance is not known. Use --seeds 3 before believing a rank."
    text = "Mean ± standard deviation over seeds. ★ is the best mean"
    if math.isfinite(noise):
        text += (
            f"; ≈ marks cells that these seeds cannot tell from it (within two standard errors of a difference; the "
            f"spread of a single run, pooled over all cells, is {noise:.2f} points)"
        )
    return text + ". The best of many cells on one validation set is an optimistic number: confirm it on other data."


def _record(sweep: Sweep) -> Markup:
    fidelity = fidelities(sweep.facts)
    if not fidelity:
        return html.section(
            "What the record loses", html.empty("Not measured: the sweep holds no fidelity of its cache.")
        )
    rows = [
        (
            f"τ {tau:g}",
            fixed(row.gradient_error, 3),
            *(f"{value:.2g}" if math.isfinite(value) else "–" for value in (row.kl, row.kl_p99)),
            f"{100 * row.bias:+.2g} %" if math.isfinite(row.bias) else "–",
            error_word(row.gradient_error)[1],
        )
        for tau, row in sorted(fidelity.items())
    ]
    head = ("temperature", "gradient error", "KL, nats", "KL, 99th percentile", "bias of the loss", "verdict")
    note = (
        "Measured on the full logits that the cache keeps of some views. Gradient error: relative error of the "
        f"student's last-layer gradient against the true teacher's; up to {GOOD_ERROR:g} is called faithful, above "
        f"{FAIR_ERROR:g} limiting: a weak column there may be the record's fault, not τ's. More bytes lower it."
    )
    body = table(head, rows, caption="Fidelity of the record per temperature", text_columns=(0, 5))
    body += _loss_table(loss_errors(sweep.facts))
    return html.section("What the record loses", html.card(body), note)


def _loss_table(errors: Mapping[tuple[str, float | None], float]) -> Markup:
    """The gradient error of each loss, a row per loss and a column per τ."""
    if not errors:
        return Markup()
    taus = list(dict.fromkeys(tau for _, tau in errors))
    head = ("loss", *("any τ" if tau is None else f"τ {tau:g}" for tau in taus))
    rows = [
        (loss, *(fixed(errors.get((loss, tau), math.nan), 3) for tau in taus))
        for loss in dict.fromkeys(loss for loss, _ in errors)
    ]
    return table(head, rows, caption="Gradient error of each loss, untrained student", text_columns=(0,))


def _cost(sweep: Sweep) -> Markup:
    cache, forwards = sweep.facts.get("cache", {}), forward_count(sweep)
    hours = sum(result.status.seconds for result in sweep.results if result.status.state == "done") / 3600
    rows = [
        ("teacher forwards spent, once", number(forwards.spent), _spent_text(cache)),
        ("teacher forwards of these students without a cache", number(forwards.online), _online_text(forwards)),
        ("teacher forwards saved", number(forwards.saved), "the second line minus the first"),
        ("break-even", fixed(forwards.break_even, 2), "distilled students; the next one costs no forward at all"),
        ("cache on disk", _bytes(cache.get("bytes")), _per_view(cache)),
        ("time of the cells", f"{hours:.2f} h", "wall time of the passes, last tries only"),
    ]
    body = table(("what", "how much", ""), rows, caption="Cost", text_columns=(0,), wrap_columns=(2,))
    return html.section("Cost", html.card(body))


def _spent_text(cache: object) -> str:
    if isinstance(cache, dict) and cache.get("num_views"):
        return f"{count(int(cache['num_samples']), 'sample')} × {count(int(cache['num_views']), 'view')}"
    return "the sweep does not know its cache"


def _online_text(forwards: ForwardCount) -> str:
    images = f"{number(forwards.per_student)} {plural(forwards.per_student, 'image')}"
    return f"{count(forwards.num_students, 'distilled student')} × {images} each"


def _bytes(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    return byte_size(value)


def _per_view(cache: object) -> str:
    if isinstance(cache, dict) and cache.get("bytes_per_view"):
        return f"{float(cache['bytes_per_view']):.1f} bytes per view of one sample"
    return ""


def _cells(all_groups: Sequence[SeedGroup], top: SeedGroup | None, noise: float) -> Markup:
    rows = []
    for group in best_first(all_groups):
        is_equal = top is not None and group is not top and bool(group.runs) and math.isfinite(noise)
        mark = "★" if group is top else "≈ best" if is_equal and top and not told_apart(group, top, noise) else ""
        rows.append(
            (
                group.label,
                with_spread(group, "top1", 2),
                ", ".join(f"{value:.2f}" for value in group.by_seed("top1").values()) or "–",
                mean_gain(gains(group, all_groups)),
                with_spread(group, "teacher_agreement", 1, factor=100.0),
                f"{len(group.runs)}/{len(group.results)}",
                mark or _unfinished(group),
            )
        )
    head = ("cell", "top-1, %", "by seed", "gain", "agreement, %", "seeds done", "")
    body = table(head, rows, caption="Every cell", text_columns=(0, 2, 6), best_row=0 if top is not None else -1)
    return html.card(body, note="gain: mean difference to no teacher, seed by seed, in points.")


def _unfinished(group: SeedGroup) -> str:
    """Describe the students that have not finished: "2 running, epoch 7"."""
    waiting = [result for result in group.results if result.status.state != "done"]
    epochs = [result.run.epochs[-1].epoch + 1 for result in waiting if result.run is not None and result.run.epochs]
    states = Counter(result.status.state for result in waiting)
    text = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{text}, epoch {min(epochs)}" if epochs else text


def _settings(sweep: Sweep) -> Markup:
    facts = {"common": sweep.common, "cache": sweep.facts.get("cache", {})}
    return html.details("Settings of all cells", "".join(f"{key} = {value}\n" for key, value in flat(facts)))
