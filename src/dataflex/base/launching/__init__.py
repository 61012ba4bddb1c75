"""Starts a command in this process, under torchrun or on Ray."""
