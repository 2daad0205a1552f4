"""What both stages must agree on: the bytes of a sample, and the pixels of its views.

    index    keys, places, checksums and labels of all samples; their bytes, read and checked
    views    recipe + key + view number → parameters → pixels; blocks, mixing, the digest of what this machine renders
    tars     image folder → shards; anyone's shards → index, by a strict scan

rng, world, errors, atomic, signals: keyed streams, rank and size, the exceptions, whole files, stop requests.

`__init__.pyi` lists the names that other code may import (docs/python.md); each is loaded when it is first used.
"""

from lazy_loader import attach_stub

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
__all__ += ["__version__"]
