"""A demonstration that needs nothing but the installed packages: a tiny model, real text, four runs on a CPU."""
