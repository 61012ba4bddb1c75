"""Selection before training: what is written."""
