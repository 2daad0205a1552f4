"""Estimate what a cache and its students cost, and the rates that the estimate needs."""
