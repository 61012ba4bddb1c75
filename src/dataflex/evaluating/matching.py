"""Whether a generated answer is the one that was asked for."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?|(?<![\w.])[-+]?\.\d+")
_MARK = "####"  # before the result in the data of GSM8K (arXiv 2110.14168)


def normalised(text: str) -> str:
    """A text as it is compared: NFKC, without case, white space as single spaces, without a full stop at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".").rstrip()


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, else the last number of a text; None without one. Commas part thousands."""
    marked = text.rpartition(_MARK)[2] if _MARK in text else ""
    after, anywhere = _NUMBER.findall(_plain(marked)), _NUMBER.findall(_plain(text))
    if not anywhere:
        return None
    return Decimal((after[0] if after else anywhere[-1]).replace(",", ""))


def _plain(text: str) -> str:
    """Digits and signs as ASCII, without signs of currencies before a number."""
    return re.sub(r"[$€£¥]\s*(?=[\d.])", "", unicodedata.normalize("NFKC", text).replace("\u2212", "-"))
