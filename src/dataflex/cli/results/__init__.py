"""Commands about runs that are there."""
