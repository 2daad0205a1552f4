"""Encode records of one format as records of a smaller one, from all logits or from what a larger record says.

From a kind that keeps every logit the result is what stage 1 would have written against the same tail basis. From
another kind it is a record of a record: its hard labels are the source's, its error is measured against the full
logits that the source keeps, which are the teacher's own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import CacheError
from shards.views.mixing import block_rows
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import signed
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, fit_basis
from teacher_cache.stage1.calibration import FEWEST, Sample, calibration_sample, calibration_size
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import IndexFacts, UnitId
from teacher_cache.store.layout import FIDELITY_AT, FIDELITY_LOGIT, PIXEL_DIGEST
from teacher_cache.store.spec import CacheSpec
from teacher_cache.store.unit import Arrays

# V views of a unit, R rows, B = V × R, N calibration views, C classes, F fidelity positions.


def require_smaller(source: RecordFormat, wanted: RecordFormat, where: str) -> None:
    """ValueError unless records of one format can be made from another: it has probabilities, and more bytes."""
    if not source.entry.soft:
        raise ValueError(
            f"--record: {where} holds {source.kind!r} records, which have no probabilities to encode again; copy it as "
            "it is, or make the cache anew with cache-teacher"
        )
    if wanted.num_bytes >= source.num_bytes:
        raise ValueError(
            f"--record: expected fewer bytes per view than the {source.num_bytes} of {where} ({source.kind!r}), got "
            f"{wanted.num_bytes} ({wanted.kind!r}): what is not there cannot be copied"
        )


class Recoder:
    """Turns units of one cache into units of another record format."""

    def __init__(self, source: TeacherCache, record: RecordFormat, basis: TailBasis | None) -> None:
        """Encode for `record`, against `basis` where the kind needs one."""
        self._kind = source.spec.record.entry
        self._names = [field.name for field in source.spec.record.fields()]
        self._decoder = RecordCodec(source.spec.record, source.basis)
        self._encoder = RecordCodec(record, basis)
        self._measurable = record.entry.measurable

    def __call__(self, stored: Arrays, positions_F2: NDArray[np.uint32]) -> Arrays:
        """The arrays of a unit for `commit_unit`, whose full logits are kept at `positions_F2`."""
        shape = stored[PIXEL_DIGEST].shape
        logit_BC = self.logits({name: stored[name] for name in self._names})
        coded = self._encoder.encode(logit_BC)
        arrays: Arrays = {name: value.reshape(*shape, *value.shape[1:]) for name, value in coded.items()}
        arrays[PIXEL_DIGEST] = stored[PIXEL_DIGEST]
        if self._measurable and len(positions_F2):
            arrays[FIDELITY_LOGIT] = self._kept(stored, logit_BC, positions_F2)
        return arrays

    def logits(self, record: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits of records with leading axes (V, R), up to a constant per row, (V·R, C) float32.

        The first class is the record's own: a smaller level code can make two classes equal.
        """
        flat = {name: torch.from_numpy(signed(_rows(values))) for name, values in record.items()}
        label_B = self._decoder.hard_label(flat).numpy()
        if self._kind.logits is not None:
            exact_BC: NDArray[np.float32] = np.asarray(self._kind.logits(flat).numpy(), np.float32)
            return exact_BC
        logit_BC: NDArray[np.float32] = np.array(self._decoder.log_prob(flat, 1.0).numpy())
        tied_B = np.flatnonzero(logit_BC.argmax(axis=1) != label_B)
        top_B = logit_BC[tied_B].max(axis=1)
        logit_BC[tied_B, label_B[tied_B]] = np.nextafter(top_B, np.float32(np.inf))
        return logit_BC

    def _kept(
        self, stored: Arrays, logit_BC: NDArray[np.float32], positions_F2: NDArray[np.uint32]
    ) -> NDArray[np.float32]:
        """The teacher's full logits at the positions by which the copy is measured, (F, C)."""
        if FIDELITY_AT in stored:
            # Both formats are measured, and where does not depend on the format.
            assert np.array_equal(stored[FIDELITY_AT], positions_F2)
            return stored[FIDELITY_LOGIT].astype(np.float32)
        num_rows = stored[PIXEL_DIGEST].shape[1]
        at_F = positions_F2[:, 0].astype(np.int64) * num_rows + positions_F2[:, 1]
        kept_FC: NDArray[np.float32] = logit_BC[at_F]
        return kept_FC


def facts_of(cache: TeacherCache) -> IndexFacts:
    """What a copy must know of the index that a cache was made from."""
    header = cache.header
    return IndexFacts(header.shard_names, header.rows_S, header.spec.index_fingerprint, header.num_skipped)


def fitted_basis(source: TeacherCache, spec: CacheSpec) -> TailBasis | None:
    """The tail basis for a copy of this spec, fitted on the views that stage 1 would have chosen; None without need.

    Views whose unit the source lacks are left out.

    Errors:
        CacheError when too few are there, or a unit is damaged.
    """
    if not spec.record.needs_basis:
        return None
    in_source = {UnitId(int(b), int(s)) for b, s in np.argwhere(source.ledger() != 0)}
    wanted = calibration_sample(spec, facts_of(source), calibration_size(spec, int(source.rows_S.sum())))
    samples = [sample for sample in wanted if _unit_of(source, sample) in in_source]
    if sum(len(sample.place_N) for sample in samples) < FEWEST:
        raise CacheError(
            f"{source.url}: expected at least {FEWEST} views of view block 0 to fit the tail basis of "
            f"{spec.record.kind!r} records, got {sum(len(sample.place_N) for sample in samples)}; finish the cache"
        )
    return fit_basis(np.concatenate(list(_answers(source, samples))), spec.record)


def _unit_of(source: TeacherCache, sample: Sample) -> UnitId:
    return UnitId(sample.view // source.views_per_unit, sample.shard)


def _answers(source: TeacherCache, samples: list[Sample]) -> Iterator[NDArray[np.float32]]:
    """The logits of the sample, unit by unit in its order (which is by shard)."""
    decoder = Recoder(source, source.spec.record, source.basis)
    names = [field.name for field in source.spec.record.fields()]
    recipe, held, stored = source.spec.recipe, None, {}
    for sample in samples:
        unit = _unit_of(source, sample)
        if unit != held:
            held, stored = unit, source.read_unit(*unit)
        num_rows = int(source.rows_S[sample.shard])
        row_N = block_rows(recipe, source.header.shard_names[sample.shard], num_rows, sample.view)
        block_N = row_N[sample.block * recipe.block_size :][sample.place_N]
        view = sample.view % source.views_per_unit
        yield decoder.logits({name: stored[name][view : view + 1, block_N] for name in names})


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    """Leading axes (V, R) as one."""
    return np.ascontiguousarray(values.reshape(-1, *values.shape[2:]))
