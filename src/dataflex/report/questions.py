"""What a row asks, without what a template puts around it: for a line that shows a row in short.

A run keeps prompts as the tokenizer decodes them. So a role may stand alone on a line ("user"), before a colon ("USER:"), in a
token ("<|user|>"), or between tokens; where it is a special token itself, it is gone.
"""

from __future__ import annotations

import re

_USER, _ASSISTANT = "user|human|question|instruction", "assistant|model|answer|response|falcon|bot|ai"
_TOKEN = r"<[^<>\n]*[|｜_][^<>\n]*>|<(?:model|sep|/?role|/?s)>|\[\|[^\[\]\n]*\|\]|\[/?INST\]|\]~b\]|\[e~\["
_BEGINS = re.compile(
    rf"[<\[][|｜_]?(?:hy_)?(?:{_USER}|inst)[|｜]?[>\]]\s*"  # in a token
    rf"|(?:{_TOKEN})(?:{_USER})(?:{_TOKEN}|\n)\s*"  # between tokens
    rf"|(?:^|\n|(?<=[.!?]))(?:\#+ )?(?:{_USER}):?\s*\n\s*"  # alone on a line
    rf"|(?:^|(?<=[\W]))(?:\#+ )?(?-i:USER|User|HUMAN|Human):\s",
    re.IGNORECASE,
)
_ENDS = re.compile(
    rf"(?:\s*(?:{_TOKEN})|(?:(?:^|\n|(?<=[>\].!?]))\W*?|\s)(?:gpt4 correct )?\b(?:{_ASSISTANT}):"
    rf"|(?:\n[#\s]*|(?<=[>\].!?]))(?:{_ASSISTANT}))\s*$",
    re.IGNORECASE,
)
_CUT = "…"


def question(prompt: str) -> str | None:
    """The last turn of the user in a prompt; None where no turn is found."""
    begins = [match.end() for match in _BEGINS.finditer(prompt)]
    if not begins:
        return None
    asked, before = prompt[begins[-1] :], None
    while asked != before:
        asked, before = _ENDS.sub("", asked), asked
    return asked.strip() or None


def shortened(text: str, most: int) -> str:
    """The begin of a text in one line of `most` characters at most, cut between words."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    begin = line[: most - len(_CUT)]
    return (begin.rpartition(" ")[0] or begin) + _CUT


def end_of(text: str, most: int) -> str:
    """The same of its end."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    end = line[len(_CUT) - most :]
    return _CUT + (end.partition(" ")[2] or end)
