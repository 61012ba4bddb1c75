"""Weighters: how hard each sample pulls."""
