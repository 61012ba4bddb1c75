"""Child processes, and how a command is stopped."""
