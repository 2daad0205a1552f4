"""Records of kind "topk" and "lowrank": k classes by name, the others from the tail model.

Fields: `class_index` (k), `logit` (k + 1: the k level codes of `levels`, then the mass code), `tail` (the trellis code
of the coefficients; absent for "topk").

Decoding: h = mean + basis·(predicted + coded coefficients), cut at the k-th logit, shifted so that all C logits sum to
zero, cut again; at τ the classes' logits are top/τ for the k kept ones and h/τ + δ·min(1/τ, 1/τ²) for the others.
δ, the mass code, makes the tail's probability mass right at τ = 1.

Legend: B rows, C classes, K kept classes, r coefficients.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.record.bits import Windows, pack
from teacher_cache.record.conditional_mean import Predictor
from teacher_cache.record.kinds.record_kind import RecordShape
from teacher_cache.record.largest_logits import centred, clip_wild_rows, largest_logits
from teacher_cache.record.levels import LevelCode, decode_levels, encode_levels
from teacher_cache.record.tail_basis import TailBasis
from teacher_cache.record.trellis import WINDOW, quantise

MASS_STEP = 1 / 32
"""Step of the mass correction δ; codes 0 … 255 are −128 … 127 steps, and few of them occur, so they compress."""

_ROWS = 2048
"""Rows encoded at once: enough to hide the overhead of a call per coefficient, few enough to bound the memory."""


class TopAndTailCodec:
    """Encodes and decodes against a basis.

    Attributes:
        num_clamped: rows encoded so far with a value beyond the calibrated ranges.
    """

    def __init__(self, shape: RecordShape, basis: TailBasis) -> None:
        """Check that the basis was fitted for this format."""
        bits = int(basis.bits_r.sum(dtype=np.int64))
        expected = (shape.num_classes, shape.k)
        got = (len(basis.mean_C), len(basis.level_limit_K))
        if expected != got or bits > 8 * shape.tail_bytes:
            raise ValueError(
                f"tail basis: expected (classes, k) = {expected} and at most {8 * shape.tail_bytes} tail bits, "
                f"got {got} and {bits}; fit the basis with this record format"
            )
        self._shape = shape
        self._basis = basis
        self._levels = LevelCode(basis.level_limit_K, basis.level_count_K)
        self._coded = int((basis.bits_r > 0).sum())
        self._models: dict[torch.device, _Model] = {}
        self.num_clamped = 0

    def encode(self, logit_BC: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """class_index (B, k), logit (B, k + 1) uint8 and, unless "topk", tail (B, tail_bytes) uint8."""
        pieces = [self._encode(logit_BC[i : i + _ROWS]) for i in range(0, max(len(logit_BC), 1), _ROWS)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _encode(self, logit_BC: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        model = self._model(torch.device("cpu"))
        z_BC = centred(logit_BC)
        largest = largest_logits(z_BC, self._shape.k)
        wild_B = clip_wild_rows(z_BC, largest, float(self._basis.low[0]))
        level_BK, clamped_B = encode_levels(largest.top_BK, self._levels)
        kept_BK = torch.from_numpy(largest.class_BK)
        decoded_BK = model.top(torch.from_numpy(level_BK))
        code_Br = model.expect(kept_BK, decoded_BK)
        true_BC = torch.from_numpy(np.minimum(z_BC, largest.edge_B1, out=z_BC))
        record: dict[str, NDArray[np.generic]] = {"class_index": largest.class_BK.astype(self._shape.index_dtype)}
        if self._coded:
            bits_n = self._basis.bits_r[: self._coded]
            unit_Bn = (model.project(true_BC) - code_Br[:, : self._coded]).div_(model.scale_n)
            window_Bn = quantise(unit_Bn.numpy(), bits_n, self._basis.table_RW)
            record["tail"] = pack(window_Bn & ((1 << bits_n) - 1).astype(np.uint8), bits_n, self._shape.tail_bytes)
            code_Br[:, : self._coded] += model.values(torch.from_numpy(window_Bn.astype(np.int32)))
        tail_BC = model.tail(kept_BK, decoded_BK, code_Br)
        true_B = _tail_log_odds(true_BC, torch.from_numpy(largest.edge_B1), kept_BK, torch.from_numpy(largest.top_BK))
        mass_B, off_B = _mass_code(true_B - _tail_log_odds(tail_BC, decoded_BK[:, -1:], kept_BK, decoded_BK))
        record["logit"] = np.concatenate([level_BK, mass_B[:, None]], axis=1)
        self.num_clamped += int((wild_B | clamped_B | off_B).sum())
        names = ("class_index", "logit", "tail") if self._shape.tail_bytes else ("class_index", "logit")
        return {name: record[name] for name in names}

    def log_prob(self, record: Mapping[str, Tensor], temperature: float) -> Tensor:
        """Log softmax at τ, (B, C) float32, on the record's device."""
        class_BK = record["class_index"].to(torch.int64)
        model = self._model(class_BK.device)
        top_BK = model.top(record["logit"][:, :-1])
        code_Br = model.expect(class_BK, top_BK)
        if self._coded:
            code_Br[:, : self._coded] += model.values(model.windows(record["tail"]))
        tail_BC = model.tail(class_BK, top_BK, code_Br)
        shift_B1 = (record["logit"][:, -1:].to(torch.float32) - 128) * (MASS_STEP * min(1.0, 1 / temperature))
        # A positive δ must not lift a tail class to the first: never above the runner-up, which is below by a step.
        cap_B1 = top_BK[:, 1:2] if top_BK.shape[1] > 1 else top_BK - MASS_STEP
        z_BC = torch.minimum(tail_BC.add_(shift_B1), cap_B1, out=tail_BC).scatter_(1, class_BK, top_BK)
        return torch.log_softmax(z_BC.div_(temperature), dim=-1)

    def _model(self, device: torch.device) -> "_Model":
        if device not in self._models:
            self._models[device] = _Model(self._basis, self._coded, device)
        return self._models[device]


class _Model:
    """The basis as tensors on one device, and the steps of decoding."""

    def __init__(self, basis: TailBasis, coded: int, device: torch.device) -> None:
        def put(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.array(array)).to(device, torch.float32)

        self.mean_C, self.basis_Cr = put(basis.mean_C), put(basis.basis_Cr)
        self.scale_n = put(basis.scale_r[:coded])
        self._project_Cn = self.basis_Cr[:, :coded].contiguous()
        self._origin_n = -(self.mean_C @ self._project_Cn)
        self._basis_rC = self.basis_Cr.T.contiguous()
        self._limit_K, self._count_K = put(basis.level_limit_K), put(basis.level_count_K)
        self._table = put(basis.table_RW).reshape(-1)
        row_n = basis.bits_r[:coded].astype(np.int32) * basis.table_RW.shape[1]
        self._row_n = torch.from_numpy(row_n).to(device)
        self.windows = Windows(basis.bits_r[:coded], WINDOW, device)
        self._slope_r, self._offset_r = put(basis.slope_r), put(basis.offset_r)
        self._predict = Predictor(
            float(basis.pull[0]), self.mean_C, self.basis_Cr, put(basis.variance_r), put(basis.noise_C)
        )

    def top(self, level_BK: Tensor) -> Tensor:
        """The kept logits, (B, k)."""
        return decode_levels(level_BK, self._limit_K, self._count_K)

    def expect(self, class_BK: Tensor, top_BK: Tensor) -> Tensor:
        """The coefficients as the kept logits let one expect them, (B, r)."""
        return torch.addcmul(self._offset_r, self._predict(class_BK, top_BK), self._slope_r)

    def project(self, tail_BC: Tensor) -> Tensor:
        """Coefficients that are coded, (B, n)."""
        return torch.addmm(self._origin_n, tail_BC, self._project_Cn)

    def values(self, window_Bn: Tensor) -> Tensor:
        """The coded part of the coefficients, (B, n)."""
        index_Bn = window_Bn + self._row_n
        return self._table.index_select(0, index_Bn.reshape(-1)).reshape(index_Bn.shape) * self.scale_n

    def tail(self, class_BK: Tensor, top_BK: Tensor, code_Br: Tensor) -> Tensor:
        """Logits of the classes that are not kept, (B, C); what stands at the kept classes has no meaning."""
        floor_B1 = top_BK[:, -1:]
        h_BC = torch.addmm(self.mean_C, code_Br, self._basis_rC)
        torch.minimum(h_BC, floor_B1, out=h_BC)
        rest_B1 = h_BC.sum(dim=1, keepdim=True) - h_BC.gather(1, class_BK).sum(dim=1, keepdim=True)
        shift_B1 = (rest_B1 + top_BK.sum(dim=1, keepdim=True)) / (h_BC.shape[1] - class_BK.shape[1])
        # The zero-sum shift comes after the cut, so cut again: no tail class may pass the k-th.
        return torch.minimum(h_BC.sub_(shift_B1), floor_B1, out=h_BC)


def _mass_code(delta_B: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Code of δ (B,) uint8, and where it is beyond its range."""
    step_B = torch.round(delta_B / MASS_STEP)
    code_B = step_B.clamp(-128, 127)
    return (code_B + 128).to(torch.uint8).numpy(), (code_B != step_B).numpy()


def _tail_log_odds(tail_BC: Tensor, edge_B1: Tensor, class_BK: Tensor, top_BK: Tensor) -> Tensor:
    """Log of the ratio of the tail's mass to the kept classes' at τ = 1, (B,); no tail logit is above the edge."""
    share_BC = (tail_BC - edge_B1).exp_()
    share_BC.scatter_(1, class_BK, 0.0)
    # An edge far above the rest of the tail leaves a sum of 0 in float32: that mass is as good as none.
    share_B = share_BC.sum(dim=1).clamp_min_(torch.finfo(torch.float32).tiny)
    return share_B.log_() + edge_B1[:, 0] - torch.logsumexp(top_BK, dim=1)
