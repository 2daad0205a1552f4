"""Records of teacher logits: few bytes that serve any τ, and the error that this costs."""
