"""The files of a run: ledger, exposure, and what a checkpoint holds beside LLaMA-Factory's files."""
