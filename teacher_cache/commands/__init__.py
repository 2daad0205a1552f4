"""The commands that make a cache and look at it: thin, typed, and the only modules of the package that know click."""

__all__ = [
    "cache_teacher",
    "check_machine",
    "copy_cache",
    "flags",
    "plan_cache",
    "show_views",
    "stage1_checks",
    "verify_cache",
]
