"""Summarise what a cache holds: coverage as a picture, bytes per view, speed, missing units and the time they take.

B view blocks, S shards.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.atomic import atomic_file
from shards.errors import CacheError
from shards.rng import stream
from shards.text.figures import byte_size, count, duration, percent
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import TEMPERATURES, Fidelity, decoder_of, fidelity
from teacher_cache.record.loss_error import LossError, LossGradient, loss_errors
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.ledger import entry_key
from teacher_cache.store.spec import CacheSpec
from teacher_cache.store.unit import Arrays

_SHADES = "·░▒▓█"
_WIDTH, _HEIGHT = 64, 16  # of the picture of a terminal, characters
_RECENT = 64
_LOSS_ROWS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What `cache-status` shows.

    Attributes:
        url: the cache.
        done_BS: which units are in the ledger, bool.
        rows_S: rows of each shard; views_per_unit: V.
        bytes_per_view: bytes on disk per view of each array, measured on `num_measured` units; empty without.
        views_per_s: speed of the last commits; nan when it cannot be told (remote, or fewer than two commits).
        seconds_left: estimate to finish at that speed.
    """

    url: str
    done_BS: NDArray[np.bool_]
    rows_S: NDArray[np.int64]
    views_per_unit: int
    bytes_per_view: dict[str, float]
    num_measured: int
    views_per_s: float

    @property
    def total_bytes_per_view(self) -> float:
        """Bytes of the whole cache divided by its views: what "bytes per view" means wherever a cache has them."""
        return sum(self.bytes_per_view.values())

    @property
    def num_views_done(self) -> int:
        """Committed (view, sample) pairs."""
        return int(self.done_BS.sum(axis=0) @ self.rows_S) * self.views_per_unit

    @property
    def num_views_missing(self) -> int:
        """(view, sample) pairs still to do."""
        return int((~self.done_BS).sum(axis=0) @ self.rows_S) * self.views_per_unit

    @property
    def num_whole_views(self) -> int:
        """Views that every sample has, counted from view 0 without a gap: what a student can train on."""
        whole_B = self.done_BS.all(axis=1)
        return int(np.argmin(np.append(whole_B, False))) * self.views_per_unit

    @property
    def seconds_left(self) -> float:
        """Estimate to finish at `views_per_s`; 0 when finished, nan when the speed is unknown."""
        return self.num_views_missing / self.views_per_s if self.num_views_missing else 0.0


def cache_status(cache: TeacherCache, *, measure_units: int = 64) -> Status:
    """Look at a cache: the ledger, the sizes of a seeded sample of units, and the times of the last commits."""
    done_BS = cache.ledger() != 0
    units = [(int(b), int(s)) for b, s in np.argwhere(done_BS)]
    measured = [units[i] for i in np.sort(stream(0, "status").permutation(len(units))[:measure_units])]
    num_bytes: dict[str, int] = {}
    num_views = 0
    for unit in measured:
        for name, size in cache.unit_bytes(*unit).items():
            num_bytes[name] = num_bytes.get(name, 0) + size
        num_views += cache.views_per_unit * int(cache.rows_S[unit[1]])
    return Status(
        url=cache.url,
        done_BS=done_BS,
        rows_S=cache.rows_S,
        views_per_unit=cache.views_per_unit,
        bytes_per_view={name: size / num_views for name, size in num_bytes.items()},
        num_measured=len(measured),
        views_per_s=_recent_speed(cache, units),
    )


def storage_words(cache: TeacherCache) -> str:
    """Say what a finished cache takes on disk, or why that cannot be read now: it is finished all the same.

    A few chunks are weighed, since a remote store answers for each file.
    """
    try:
        status = cache_status(cache, measure_units=16)
    except CacheError as error:
        return f"storage: its size cannot be read now: {error}"
    per_view = status.total_bytes_per_view
    return f"storage: {byte_size(per_view * status.num_views_done)}, {per_view:.1f} bytes per view"


def fidelity_sample(cache: TeacherCache, max_units: int) -> Iterator[tuple[Arrays, NDArray[np.float32]]]:
    """Records beside the full logits they stand for, unit by unit in seeded order.

    Yields:
        (name → (F, …) record fields, (F, C) float32 logits); nothing for exact records, which keep no sample.
    """
    names = [field.name for field in cache.spec.record.fields()]
    units = [(int(b), int(s)) for b, s in np.argwhere(cache.ledger() != 0)]
    for i in stream(0, "fidelity report").permutation(len(units))[:max_units]:
        stored = cache.read_unit(*units[i])
        if "fidelity_at" not in stored:
            return
        at = tuple(stored["fidelity_at"].T.astype(np.int64))
        yield {name: stored[name][at] for name in names}, stored["fidelity_logit"].astype(np.float32)


def cache_fidelity(cache: TeacherCache, *, max_units: int) -> list[Fidelity]:
    """The true error per τ of this cache's records against its kept full logits; [] where there is nothing to measure.

    Args:
        max_units: how many units, in seeded order, are read at the most.
    """
    return cache_errors(cache, (), max_units=max_units)[0]


def cache_errors(
    cache: TeacherCache,
    losses: Sequence[LossGradient],
    *,
    max_units: int,
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[list[Fidelity], list[LossError]]:
    """The true error of this cache's records per τ, and of the gradient of each loss, against its kept full logits.

    Args:
        max_units: how many units, in seeded order, are read at the most; for the losses at most 2,048 rows of them.

    Returns:
        Two empty lists where there is nothing to measure: exact records, or none with probabilities.
    """
    sample = list(fidelity_sample(cache, max_units))
    if not sample or not cache.spec.record.entry.soft or not temperatures:
        return [], []
    codec = RecordCodec(cache.spec.record, cache.basis)
    logit_BC = np.concatenate([logits for _, logits in sample])
    record = {name: np.concatenate([fields[name] for fields, _ in sample]) for name in sample[0][0]}
    log_prob = decoder_of(codec, record)
    return (
        fidelity(logit_BC, log_prob, temperatures=temperatures),
        loss_errors(logit_BC[:_LOSS_ROWS], log_prob, losses, temperatures=temperatures),
    )


def status_lines(status: Status) -> list[str]:
    """The status as lines of text for a terminal."""
    done, units = int(status.done_BS.sum()), status.done_BS.size
    lines = [
        f"{status.url}",
        f"{count(status.done_BS.shape[0] * status.views_per_unit, 'view')} × "
        f"{count(int(status.rows_S.sum()), 'sample')} in {count(units, 'chunk')} "
        f"(a chunk: {count(status.views_per_unit, 'view')} of a shard)",
        f"done: {count(done, 'chunk')} ({percent(done, units)}); views that every sample has: {status.num_whole_views}",
        "first view of each line; shards from left to right; dark: done",
        *_picture(status.done_BS, status.views_per_unit),
    ]
    if status.bytes_per_view:
        parts = ", ".join(f"{name} {size:.2f}" for name, size in status.bytes_per_view.items())
        measured = f"measured on {count(status.num_measured, 'chunk')}"
        lines.append(f"bytes per view on disk: {status.total_bytes_per_view:.2f} ({parts}; {measured})")
    if status.num_views_missing:
        lines.append(
            f"missing: {count(units - done, 'chunk')}, {count(status.num_views_missing, 'view')}"
            f"{_first_missing(status)}"
        )
        if np.isfinite(status.views_per_s):
            lines.append(
                f"speed: {status.views_per_s:.1f} views/s over the last chunks, pauses between runs included; "
                f"{duration(status.seconds_left)} left at this speed"
            )
    return lines


def status_json(status: Status, spec: CacheSpec) -> dict[str, Any]:
    """Spec, coverage and bytes as plain JSON values."""
    return {
        "spec": spec.to_json(),
        "fingerprint": spec.fingerprint,
        "units_done": int(status.done_BS.sum()),
        "units": int(status.done_BS.size),
        "whole_views": status.num_whole_views,
        "bytes_per_view": status.total_bytes_per_view,
        "bytes_per_view_by_array": status.bytes_per_view,
    }


def save_picture(status: Status, path: Path) -> None:
    """Write the coverage as a PNG: one cell per unit, view blocks down, shards across; what is there is dark."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    missing, present = "#e3e7ed", "#00805c"
    done, units = int(status.done_BS.sum()), status.done_BS.size
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    cmap = ListedColormap([missing, present])
    axes.imshow(status.done_BS, aspect="auto", interpolation="nearest", cmap=cmap, vmin=0, vmax=1)
    for axis in (axes.xaxis, axes.yaxis):  # units are counted: there is no shard 0.5
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("shard")
    axes.set_ylabel(f"view block ({count(status.views_per_unit, 'view')} each)")
    axes.set_title(f"{done} of {count(units, 'chunk')}")
    patches = [
        Patch(facecolor=present, label=f"there: {done}"),
        Patch(facecolor=missing, edgecolor="#5a6473", label=f"missing: {units - done}"),
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _picture(done_BS: NDArray[np.bool_], views_per_unit: int) -> list[str]:
    """At most 16 lines of 64 cells; the shade of a cell is the share of its units that is done.

    A full block is drawn only for a cell that is whole, a dot only for one that is empty.
    """
    rows = np.array_split(np.arange(done_BS.shape[0]), min(_HEIGHT, done_BS.shape[0]))
    columns = np.array_split(np.arange(done_BS.shape[1]), min(_WIDTH, done_BS.shape[1]))
    lines = []
    for row in rows:
        shares = [float(done_BS[np.ix_(row, column)].mean()) for column in columns]
        cells = [_SHADES[0 if s == 0 else 4 if s == 1 else 1 + min(2, int(3 * s))] for s in shares]
        lines.append(f"{row[0] * views_per_unit:>5} {''.join(cells)}")
    return lines


def _first_missing(status: Status) -> str:
    block, shard = (int(i) for i in np.argwhere(~status.done_BS)[0])
    return f", the first is view block {block}, shard {shard}"


def _recent_speed(cache: TeacherCache, units: list[tuple[int, int]]) -> float:
    """Views per second over the last commits, from the times of the ledger's files; nan where there are none."""
    if cache.folder is None or cache.header.packed or len(units) < 2:
        return float("nan")
    times = np.array([os.stat(cache.folder / entry_key(UnitId(*unit))).st_mtime for unit in units])
    order = np.argsort(times)[-_RECENT:]
    elapsed = float(times[order[-1]] - times[order[0]])
    # The first of them started before the interval began.
    num_views = sum(cache.views_per_unit * int(cache.rows_S[units[i][1]]) for i in order[1:])
    return num_views / elapsed if elapsed > 0 else float("nan")
