"""Mixers: how much of each domain."""
