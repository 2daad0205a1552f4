"""Bytes, errors and speed of the teacher's records, beside those of other systems at equal bytes.

    python -m benchmarks.codec --calibration calibration.npz --evaluation development.npz [--bytes 64] [--json]

Both files hold `teacher` (N, C) logits; the evaluation file may hold `student` (N, C) and `student_feature` (N, D),
without which G stands for an untrained student (see `teacher_cache.record.fidelity`). Views of different images in the
two files. Takes about half a minute. Bytes are those of the objects that the real store wrote.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peer_records import peer_decoders
from shards.views.view_recipe import recipe_named
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import Fidelity, fidelity
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, fit_basis
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import FIDELITY_RATE, IndexFacts
from teacher_cache.store.layout import FIDELITY_AT, FIDELITY_LOGIT
from teacher_cache.store.spec import CacheSpec, TeacherSpec

_ROWS = 256
_REPEATS = 9


def run(calibration: Path, evaluation: Path, record: RecordFormat | None, num_bytes: int) -> dict[str, Any]:
    """Everything the benchmark prints, as JSON values."""
    cal_NC, known = np.load(calibration)["teacher"], np.load(evaluation)
    logit_BC = known["teacher"].astype(np.float32)
    record = record or RecordFormat.chosen("lowrank", logit_BC.shape[1], num_bytes=num_bytes)
    basis = fit_basis(cal_NC, record) if record.needs_basis else None
    codec = RecordCodec(record, basis)
    fields = codec.encode(logit_BC)
    clamped = codec.num_clamped
    student = {name: known[key] for name, key in _STUDENT if key in known.files}
    tensors = {name: torch.from_numpy(value) for name, value in fields.items()}

    def log_prob(rows: slice, temperature: float) -> NDArray[np.float32]:
        return codec.log_prob({name: value[rows] for name, value in tensors.items()}, temperature).numpy()

    measured = fidelity(logit_BC, log_prob, **student)
    decoded = np.concatenate([log_prob(slice(i, i + _ROWS), 1.0) for i in range(0, len(logit_BC), _ROWS)])
    first_B = codec.hard_label(tensors).numpy()
    agree_B = (first_B == logit_BC.argmax(axis=1)) & (decoded.argmax(axis=1) == first_B)
    size = bytes_on_disk(record, basis, fields, logit_BC)
    encode_us, decode_us = _speed(codec, logit_BC, tensors)
    peers = peer_decoders(cal_NC, logit_BC, num_bytes)
    return {
        "record": record.to_json(),
        "views": len(logit_BC),
        "bytes_per_view": size["bytes_per_view"],
        "bytes": size,
        "argmax_agreement": float(agree_B.mean()),
        "clamped_views": clamped,
        **_by_temperature(measured),
        "encode_us": encode_us,
        "decode_us": decode_us,
        "peers": {
            name: {"bytes_per_view": num_bytes, **_by_temperature(fidelity(logit_BC, peer, **student))}
            for name, peer in peers.items()
        },
    }


_STUDENT = (("student_BC", "student"), ("feature_BD", "student_feature"))
_COLUMNS = (("KL", "kl"), ("KL_p99", "kl_p99"), ("G", "gradient_error"), ("bias", "bias"))


def _by_temperature(measured: Sequence[Fidelity]) -> dict[str, dict[str, float | None]]:
    """Measures as objects keyed by τ; what is not finite becomes null, as JSON has no infinity."""
    out: dict[str, dict[str, float | None]] = {}
    for name, attribute in _COLUMNS:
        values = {f"{m.temperature:g}": getattr(m, attribute) for m in measured}
        out[name] = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return out


def bytes_on_disk(
    record: RecordFormat, basis: TailBasis | None, fields: dict[str, NDArray[Any]], logit_BC: NDArray[np.float32]
) -> dict[str, float]:
    """Bytes per view of one committed unit, by array, and their sum.

    The full logits kept for the fidelity report count at their share in a large cache (one view in 1,000, fewer above
    1,000 classes); a small cache keeps more. Metadata and the basis are written once per cache: `once`, not in the sum.
    """
    num_views = 6 if len(logit_BC) % 6 == 0 else 1
    num_rows = len(logit_BC) // num_views
    recipe = recipe_named("plain", size=32, block_views=num_views, block_size=4)
    teacher = TeacherSpec(
        name="logits",
        weights_sha256="0" * 64,
        precision="fp32",
        input_size=32,
        num_classes=record.num_classes,
        mean=recipe.mean,
        std=recipe.std,
    )
    spec = CacheSpec(index_fingerprint="0" * 64, teacher=teacher, recipe=recipe, record=record, behaviour="0" * 64)
    arrays = {name: value.reshape(num_views, num_rows, *value.shape[1:]) for name, value in fields.items()}
    words = np.random.Philox(key=0).random_raw(num_views * num_rows)  # as incompressible as real digests
    arrays["pixel_digest"] = words.astype(np.uint32).reshape(num_views, num_rows)
    shard = IndexFacts(("logits",), np.array([num_rows], np.int64), spec.index_fingerprint)
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder) / "cache.zarr"
        with TeacherCache.create(url, spec, shard, basis, num_views=num_views) as cache:
            at_F2 = cache.fidelity_positions(0, 0)
            if len(at_F2):
                arrays[FIDELITY_LOGIT] = logit_BC.reshape(num_views, num_rows, -1)[tuple(at_F2.T)]
            cache.commit_unit(0, 0, arrays)
            unit = cache.unit_bytes(0, 0)
        total = sum(path.stat().st_size for path in url.rglob("*") if path.is_file())
    share = min(1.0, 1000 / record.num_classes) / FIDELITY_RATE
    out = {name: size / len(logit_BC) for name, size in unit.items() if name not in (FIDELITY_AT, FIDELITY_LOGIT)}
    if len(at_F2):
        out["full_logits"] = (unit[FIDELITY_AT] + unit[FIDELITY_LOGIT]) / len(at_F2) * share
    return {**out, "bytes_per_view": sum(out.values()), "once": float(total - sum(unit.values()))}


def _speed(codec: RecordCodec, logit_BC: NDArray[np.float32], tensors: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Median µs per view on one thread: encoding all rows at once, decoding batches of 256 at τ = 3."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batches = [{name: value[i : i + _ROWS] for name, value in tensors.items()} for i in range(0, len(logit_BC), _ROWS)]
    try:
        encode = _median(lambda: codec.encode(logit_BC))
        # Soft targets belong to "hard" records no more than to labels.
        decode = math.nan if codec.record_format.kind == "hard" else _median(lambda: _decode(codec, batches))
    finally:
        torch.set_num_threads(threads)
    return encode / len(logit_BC) * 1e6, decode / len(logit_BC) * 1e6


def _decode(codec: RecordCodec, batches: list[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        codec.log_prob(batch, 3.0)


def _median(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def table(result: dict[str, Any]) -> str:
    """The result as lines to read."""
    record, size = result["record"], result["bytes"]
    parts = ", ".join(f"{name} {value:.2f}" for name, value in size.items() if name not in ("bytes_per_view", "once"))
    lines = [
        f"record {record['kind']}, k = {record['k']}, {record['num_classes']} classes, {result['views']} views",
        f"bytes per view on disk  {result['bytes_per_view']:.2f}  ({parts}; once per cache {size['once']:,.0f})",
        f"first class agrees      {result['argmax_agreement']:.6f}   clamped views {result['clamped_views']}",
        f"one core                encode {result['encode_us']:.1f} µs, decode {result['decode_us']:.1f} µs per view",
    ]
    rows = {"this record": result, **result["peers"]}
    for name, _ in _COLUMNS:
        lines.append(f"{name:22}" + "".join(f"{'τ = ' + t:>11}" for t in result[name]))
        for who, row in rows.items():
            cells = ("   infinite" if v is None else f"{v:11.4f}" for v in row[name].values())
            lines.append(f"  {who:20}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True, help=".npz with `teacher`; fits the basis")
    parser.add_argument("--evaluation", type=Path, required=True, help=".npz with `teacher` and perhaps a student")
    parser.add_argument("--bytes", type=int, default=64, help="bytes per view on disk")
    parser.add_argument("--kind", choices=("topk", "lowrank", "dense8", "dense"), help="default: by classes and bytes")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    record = None
    if args.kind is not None:
        num_classes = np.load(args.evaluation)["teacher"].shape[1]
        budget = args.bytes if args.kind in ("topk", "lowrank") else 0
        record = RecordFormat.chosen(args.kind, num_classes, num_bytes=budget)
    result = run(args.calibration, args.evaluation, record, args.bytes)
    print(table(result))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
