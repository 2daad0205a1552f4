"""The cells of an ablation: a λ × τ × loss × seed × views × teachers grid without duplicates.

A loss that does not read τ, such as hard distillation, has one cell per λ; λ = 0 is the baseline without a teacher, the
same for every loss, τ and set of teachers, so it has one cell per seed. What remains is trained exactly once.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from shards.values import JsonValue, later
from student.learn.losses.table import LOSSES, NONE, loss_named


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(JsonValue):
    """One student of the grid.

    `temperature` is None where it has no meaning; `views_used` is None for all views of the cache; `teachers` is a set
    of caches such as "a+b", empty for all of the sweep.
    """

    distill: str
    distill_weight: float
    temperature: float | None
    seed: int
    views_used: int | None = None
    teachers: str = later("")

    @property
    def name(self) -> str:
        """A readable directory name, unique in a grid: `soft-l0.5-t3-s0`, `none-s0`, `hard-l0.5-v12-a+b-s0`."""
        parts: list[str] = [self.distill]
        if self.distill != NONE:
            parts.append(f"l{self.distill_weight!r}".removesuffix(".0"))
        if self.temperature is not None:
            parts.append(f"t{self.temperature!r}".removesuffix(".0"))
        if self.views_used is not None:
            parts.append(f"v{self.views_used}")
        if self.teachers:
            parts.append(self.teachers)
        return "-".join((*parts, f"s{self.seed}"))

    @property
    def setting(self) -> tuple[str, float, float | None, int | None, str]:
        """What the seeds of one aggregate share: (distill, λ, τ, views, teachers)."""
        return self.distill, self.distill_weight, self.temperature, self.views_used, self.teachers


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid(JsonValue):
    """The values of each axis, in the order given.

    Args:
        weights: λ, each in [0, 1]; 0 is the baseline.
        temperatures: τ, each positive; needed when a loss of `distillations` reads it.
        distillations: names of losses.
        seeds: one student per cell and seed.
        views_used: how many views of the cache a student cycles through; None means all of them.
        teachers: sets of the sweep's caches, such as "a" and "a+b"; "" is all of them.

    Raises:
        ValueError: naming the axis, what it may hold and what it holds.
    """

    KIND = "grid"
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    distillations: tuple[str, ...] = ("hard", "soft")
    seeds: tuple[int, ...] = (0,)
    views_used: tuple[int | None, ...] = (None,)
    teachers: tuple[str, ...] = later(("",))

    def __post_init__(self) -> None:
        for axis in ("weights", "temperatures"):
            object.__setattr__(self, axis, tuple(float(value) + 0.0 for value in getattr(self, axis)))
        _check(self.weights, "lambda", lambda value: 0 <= value <= 1, "numbers in [0, 1]")
        _check(self.distillations, "distill", lambda value: isinstance(value, str), " or ".join(LOSSES))
        for name in self.distillations:
            LOSSES.require(name)
        _check(self.seeds, "seeds", lambda value: 0 <= value < 1 << 63, "integers from 0 below 2**63")
        _check(self.views_used, "views-used", lambda value: value is None or value >= 1, "positive integers")
        _check(self.teachers, "teachers", lambda value: isinstance(value, str), "sets of caches")
        if self._needs_tau or self.temperatures:
            _check(self.temperatures, "tau", lambda value: 0 < value < math.inf, "positive numbers")

    @property
    def _needs_tau(self) -> bool:
        varied = any(loss_named(name).uses_temperature for name in self.distillations)
        return varied and any(weight > 0 for weight in self.weights)

    def cells(self) -> tuple[Cell, ...]:
        """Every cell once: grouped by views, seed and teachers (what can share a pass), baseline first."""
        return tuple(
            cell
            for views, seed in itertools.product(self.views_used, self.seeds)
            for cell in self._cells_of(views, seed)
        )

    def _cells_of(self, views: int | None, seed: int) -> Iterator[Cell]:
        if any(weight == 0 for weight in self.weights):
            yield Cell(distill=NONE, distill_weight=0.0, temperature=None, seed=seed, views_used=views)
        for teachers in self.teachers:
            yield from self._taught_cells(views, seed, teachers)

    def _taught_cells(self, views: int | None, seed: int, teachers: str) -> Iterator[Cell]:
        for distill, weight in itertools.product(self.distillations, self.weights):
            if weight == 0:
                continue
            for tau in self.temperatures if loss_named(distill).uses_temperature else (None,):
                yield Cell(
                    distill=distill,
                    distill_weight=weight,
                    temperature=tau,
                    seed=seed,
                    views_used=views,
                    teachers=teachers,
                )

    def columns(self) -> tuple[tuple[str, float | None], ...]:
        """Loss and τ of each column of a map, τ ascending; None where the loss does not read it."""
        taus = tuple(sorted(self.temperatures))
        return tuple(
            (name, tau)
            for name in LOSSES
            if name in self.distillations
            for tau in (taus if loss_named(name).uses_temperature else (None,))
        )

    def column_names(self) -> tuple[str, ...]:
        """What the columns of a map are called: "hard", "τ 2"; with several losses that read τ, "soft τ 2"."""
        several = sum(loss_named(name).uses_temperature for name in self.distillations) > 1
        return tuple(
            name if tau is None else f"{name} τ {tau:g}" if several else f"τ {tau:g}" for name, tau in self.columns()
        )

    def groups(self, together: int) -> tuple[tuple[Cell, ...], ...]:
        """The cells in groups of at most `together` that see the same batches and answers (seed, views, teachers)."""
        if together < 1:
            raise ValueError(f"together: expected at least 1 student per pass, got {together}")
        result: list[tuple[Cell, ...]] = []
        for _, same in itertools.groupby(self.cells(), key=lambda cell: (cell.views_used, cell.seed, cell.teachers)):
            cells = tuple(same)
            result += [cells[first : first + together] for first in range(0, len(cells), together)]
        return tuple(result)

    def union(self, other: "Grid") -> "Grid":
        """The grid with the values of both on every axis; how a sweep grows without losing a cell."""

        def merged(axis: str) -> tuple[Any, ...]:
            return tuple(dict.fromkeys((*getattr(self, axis), *getattr(other, axis))))

        return Grid(**{item.name: merged(item.name) for item in fields(self)})


def _check(values: Sequence[Any], axis: str, allowed: Any, expected: str) -> None:
    if not values:
        raise ValueError(f"{axis}: expected at least one value ({expected}), got none")
    for value in values:
        if not allowed(value):
            raise ValueError(f"{axis}: expected {expected}, got {value!r}")
    if len(set(values)) != len(values):
        raise ValueError(f"{axis}: each value once, got {', '.join(map(str, values))}")
