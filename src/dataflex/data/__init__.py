"""The rows of a run and how they reach the trainer."""
