"""Stage 2: students from shards and a teacher cache, any λ, any τ, one or many on a pass.

    recipe    which students there are and how each is trained
    feed      the order of an epoch, its views, its records
    learn     network, losses, optimiser, trainer, process group, evaluation
    run       the loop; a run with its directory, exact resume, export
    sweep     maps of λ × τ;  report: what came of it;  cost: what it costs
"""

__all__ = ["cost", "feed", "learn", "recipe", "report", "run", "sweep"]
