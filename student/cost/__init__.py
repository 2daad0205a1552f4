"""What a cache and its students will cost, and the rates from which that follows."""
