"""What a training loop eats: the order of an epoch, rendered batches, joined with the teacher's records."""
