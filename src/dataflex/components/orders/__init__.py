"""Orders: the shape of the scores over an epoch of a pool."""
