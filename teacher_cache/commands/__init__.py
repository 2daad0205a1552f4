"""The commands that make a cache and look at it: thin, typed, and the only modules of the package that know click."""
