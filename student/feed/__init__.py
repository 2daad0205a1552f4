"""What a training loop eats: the order of an epoch, rendered batches, joined with the teacher's records."""

__all__ = ["cache_check", "epoch_plan", "join", "loader", "node_file", "pass_data", "slab", "teacher_source"]
