"""The data and the model of an evaluation, through LLaMA-Factory."""
