"""The commands that train or select."""
