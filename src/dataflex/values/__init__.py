"""Single values of a configuration, read as the kind they must be: what `config` and `compat` build on."""

from dataflex.values.single import integer, number, shown, truth, words

__all__ = ["integer", "number", "shown", "truth", "words"]
