"""The artefact of stage 1: one small record for every (view, sample), and the spec that says what it is of.

    spec, header          what a cache was made for; the refusal of everything else
    teacher, calibrate, opening, pipeline, build    run the teacher over units and commit them
    codec, record, tail   logits ↔ bytes: any τ from one record; fidelity: how true
    store, cache, commit, ledger, layout            units in Zarr, all or nothing
    verify, status, estimate, sheet                 look before, during and after
"""

__all__ = ["build", "codec", "estimate", "fidelity", "opening", "sheet", "spec", "status", "store", "teacher", "verify"]
