"""Records of other systems at a given number of bytes, as decoders: what they would make of the same logits.

Bytes per view count the same way as for this project's records: 4 for what replays the view (a seed there, a digest
here), the rest for the record; class indices and values take 2 bytes each.

    topk_renormalised   K classes, fp16 logits, softmax over them alone (ml-dr, FKD)
    tinyvit             K classes, fp16 probabilities at τ = 1, the remainder spread evenly; at other τ the same
                        probabilities raised to 1/τ and normalised
    class_mean          K classes, fp16 logits, one fp16 correction of the tail's mass at τ = 1, and for the other
                        classes their mean logit over the calibration rows

Legend: B rows, C classes, K kept classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.record.fidelity import LogProb, log_softmax

_REPLAY_BYTES = 4
_CLASS_BYTES = 4


def peer_decoders(calibration_NC: NDArray[Any], logit_BC: NDArray[Any], num_bytes: int) -> dict[str, LogProb]:
    """name → decoder of the records of `logit_BC`, each with as many classes as fit `num_bytes`."""
    num_kept = (num_bytes - _REPLAY_BYTES) // _CLASS_BYTES
    num_with_mass = (num_bytes - _REPLAY_BYTES - 2) // _CLASS_BYTES
    limit = logit_BC.shape[1] - 1
    z_BC = logit_BC.astype(np.float64) - logit_BC.mean(axis=1, keepdims=True, dtype=np.float64)
    mean_C = calibration_NC.mean(axis=0, dtype=np.float64)
    return {
        "topk_renormalised": _renormalised(z_BC, max(1, min(num_kept, limit))),
        "tinyvit": _tinyvit(z_BC, max(1, min(num_kept, limit))),
        "class_mean": _class_mean(z_BC, mean_C - mean_C.mean(), max(1, min(num_with_mass, limit))),
    }


def _largest(z_BC: NDArray[np.float64], num_kept: int) -> NDArray[np.int64]:
    return np.argsort(-z_BC, axis=1, kind="stable")[:, :num_kept]


def _half(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(value.astype(np.float16), np.float64)


def _renormalised(z_BC: NDArray[np.float64], num_kept: int) -> LogProb:
    class_BK = _largest(z_BC, num_kept)
    top_BK = _half(np.take_along_axis(z_BC, class_BK, axis=1))

    def log_prob(rows: slice, temperature: float) -> NDArray[np.float64]:
        out_BC = np.full(z_BC[rows].shape, -np.inf)
        np.put_along_axis(out_BC, class_BK[rows], log_softmax(top_BK[rows], temperature), axis=1)
        return out_BC

    return log_prob


def _tinyvit(z_BC: NDArray[np.float64], num_kept: int) -> LogProb:
    class_BK = _largest(z_BC, num_kept)
    prob_BK = _half(np.take_along_axis(np.exp(log_softmax(z_BC, 1.0)), class_BK, axis=1))
    rest_B1 = np.maximum(1 - prob_BK.sum(axis=1, keepdims=True), 1e-7) / (z_BC.shape[1] - num_kept)

    def log_prob(rows: slice, temperature: float) -> NDArray[np.float64]:
        prob_BC = np.broadcast_to(rest_B1[rows], z_BC[rows].shape).copy()
        np.put_along_axis(prob_BC, class_BK[rows], np.maximum(prob_BK[rows], 1e-7), axis=1)
        return log_softmax(np.log(prob_BC), temperature)

    return log_prob


def _class_mean(z_BC: NDArray[np.float64], mean_C: NDArray[np.float64], num_kept: int) -> LogProb:
    class_BK = _largest(z_BC, num_kept)
    top_BK = _half(np.take_along_axis(z_BC, class_BK, axis=1))
    tail_BC = np.minimum(np.broadcast_to(mean_C, z_BC.shape), top_BK[:, -1:])
    delta_B1 = _half(_tail_mass(z_BC, class_BK) - _tail_mass(tail_BC, class_BK))

    def log_prob(rows: slice, temperature: float) -> NDArray[np.float64]:
        h_BC = tail_BC[rows] / temperature + delta_B1[rows] * min(1 / temperature, 1 / temperature**2)
        np.put_along_axis(h_BC, class_BK[rows], top_BK[rows] / temperature, axis=1)
        return log_softmax(h_BC, 1.0)

    return log_prob


def _tail_mass(h_BC: NDArray[np.float64], class_BK: NDArray[np.int64]) -> NDArray[np.float64]:
    mass_BC = np.exp(h_BC - h_BC.max(axis=1, keepdims=True))
    np.put_along_axis(mass_BC, class_BK, 0.0, axis=1)
    return np.asarray(np.log(mass_BC.sum(axis=1, keepdims=True)) + h_BC.max(axis=1, keepdims=True))
