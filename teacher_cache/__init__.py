"""The artefact of stage 1: one small record for every (view, sample), and the spec that says what it is of.

    record    logits ↔ bytes: any τ from one record, and how true it is
    store     spec, layout, ledger; units in Zarr, all or nothing
    network   the teacher
    stage1    runs the teacher over units and commits them
    inspect   look before, during and after
    publish   copies, smaller ones, cards

`__init__.pyi` lists the names that other code may import (docs/python.md); each is loaded when it is first used.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
