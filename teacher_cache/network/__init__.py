"""The teacher: a classifier with fixed weights, fed with normalised views."""

__all__ = ["classifier", "device", "heap", "hub", "own_network", "teacher", "teacher_name", "timm_network", "weights"]
