"""The commands that train students and say what came of it: thin, typed, the only modules here that know click."""

__all__ = [
    "ablate",
    "cache_status",
    "cost",
    "evaluate",
    "export",
    "flags",
    "models",
    "predict",
    "report",
    "run_checks",
    "sweep_display",
    "train_student",
    "train_teacher",
    "training_display",
]
