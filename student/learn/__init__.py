"""Learning from a batch: network, losses, optimiser, trainer, process group, evaluation."""
