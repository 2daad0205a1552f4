"""Publish a cache: in whole or in part, in fewer bytes, with a card that says what it is."""
