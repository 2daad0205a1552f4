"""What a record is: teacher logits as few bytes that serve any τ, and the error that this costs."""

__all__ = [
    "bits",
    "codec",
    "conditional_mean",
    "dense",
    "fidelity",
    "levels",
    "loss_error",
    "peaks",
    "ranked",
    "record_format",
    "tail_basis",
    "trellis",
    "trellis_tables",
]
