"""Feed training loops: the order of an epoch, rendered batches, and the teacher's records for them."""
