"""What a record is: teacher logits as few bytes that serve any τ, and the error that this costs."""
