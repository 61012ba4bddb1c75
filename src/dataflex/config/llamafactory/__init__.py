"""LLaMA-Factory's and transformers' keys: types, ranges, and what each does to a run."""
