"""Shows runs: as tables in a terminal, and as one page of HTML."""
