"""The teacher: a classifier with fixed weights, fed with normalised views."""
