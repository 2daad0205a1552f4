"""Looking at a cache before, during and after it is made."""
