"""Data sets, targets and reference models, through LLaMA-Factory's own loading."""
