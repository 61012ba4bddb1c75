"""What a run decides: which rows are served, from which domains, and when components act."""
