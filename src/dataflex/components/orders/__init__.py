"""Orders: the shape of the scores over a pass through the rows."""
