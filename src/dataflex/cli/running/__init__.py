"""Commands that run something: a training, a selection, the demonstration, a program of LLaMA-Factory."""
