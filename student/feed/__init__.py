"""What a training loop eats: the order of an epoch, rendered batches, joined with the teacher's records."""

__all__ = ["cache_check", "epoch_plan", "join", "loader", "pass_data", "teacher_source"]
