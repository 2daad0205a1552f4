"""Learning from a batch: network, losses, optimiser, trainer, process group, evaluation."""

__all__ = [
    "evaluation",
    "learning_rate",
    "loss",
    "memory",
    "network",
    "optimiser",
    "process_group",
    "record_errors",
    "trainer",
    "validation",
]
