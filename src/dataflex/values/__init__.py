"""Single values of a configuration, read as the kind they must be: what `config` and `compat` build on."""

from dataflex.values.single import dataset_names, integer, number, shown, truth, words

__all__ = ["dataset_names", "integer", "number", "shown", "truth", "words"]
