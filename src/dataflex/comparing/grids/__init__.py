"""The grid of a comparison: its file, its cells, what is checked of them, and how they are trained."""
