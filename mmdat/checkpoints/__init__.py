"""Reading checkpoints without running code, and going on from them."""
