"""Stage 2: students from shards and a teacher cache, any λ, any τ, one or many on a pass.

    recipe    which students there are and how each is trained
    feed      the door: views, labels and the teacher's answers in any training loop
    learn     network, losses, optimiser, trainer, process group, evaluation
    run       the loop; a run with its directory, exact resume, export
    sweep     maps of λ × τ;  report: what came of it;  cost: what it costs

`__init__.pyi` lists the names that other code may import (docs/python.md); each is loaded when it is first used.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
