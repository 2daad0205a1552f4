"""Stage 2: students from shards and a teacher cache, any λ, any τ, one or many on a pass.

    models, recipes, overrides, schedule            which students there are and how each is trained
    plan, loader, join, teacher_source              the order of an epoch, its views, its records
    model, loss, optim, trainer, loop, run          one step; the loop; a run with its directory
    distributed, checkpoint, signals               many processes, exact resume
    runlog, run_data                               what a run writes, and how it is read again
    evaluate, export, ablate, cost, report          what came of it; maps of λ × τ; what it costs
"""

__all__ = ["ablate", "cost", "evaluate", "export", "loop", "models", "overrides", "recipes", "report", "settings"]
