"""The teacher: a classifier with fixed weights, fed with normalised views."""

__all__ = ["classifier", "device", "heap", "own_network", "teacher", "timm_network", "weights"]
