"""Which sample comes at which position: numpy only, no torch, no files."""
