"""What LLaMA-Factory refuses: an error of its calls that read arguments, tokenizer and data is the user's to mend.

These calls are few, and each is marked where it is made. All other code is ours, and an error there is a fault with a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from dataflex.errors import ConfigError, DataflexError
from dataflex.writing import why_not_written

P = ParamSpec("P")
T = TypeVar("T")

_KINDS = (ValueError, OSError, ImportError)
_WHOSE = "_dataflex_whose"


@contextmanager
def refusals() -> Iterator[None]:
    """Around a call of LLaMA-Factory, or of datasets: what it refuses becomes a ConfigError, with the error as its cause.

    An error that passed through `ours` on its way stays what it is."""
    try:
        yield
    except DataflexError:
        raise
    except _KINDS as error:
        if is_ours(error):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if why_not_written(error) is not None:  # nothing in the configuration is wrong
            raise DataflexError(message) from error
        raise ConfigError(message) from error


def refusing(call: Callable[P, T]) -> Callable[P, T]:
    """A function of LLaMA-Factory, called inside `refusals`."""

    @wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with refusals():
            return call(*args, **kwargs)

    return called


def ours(call: Callable[P, T]) -> Callable[P, T]:
    """A function of ours that LLaMA-Factory calls: its errors are no refusals of LLaMA-Factory's."""
    return _marked(call, "ours")


def theirs(call: Callable[P, T]) -> Callable[P, T]:
    """A function of LLaMA-Factory that a function of `ours` calls in turn."""
    return _marked(call, "theirs")


def is_ours(error: BaseException) -> bool:
    return getattr(error, _WHOSE, None) == "ours"


def _marked(call: Callable[P, T], whose: str) -> Callable[P, T]:
    @wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not hasattr(error, _WHOSE):  # the innermost knows best
                setattr(error, _WHOSE, whose)
            raise

    return called
