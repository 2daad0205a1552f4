"""The commands that train students and say what came of it: thin, typed, the only modules here that know click."""
