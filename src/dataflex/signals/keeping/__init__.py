"""Measurements kept on disk, so that a pass that was cut off goes on."""
