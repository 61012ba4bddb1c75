"""Refused with `dataflex.domains`."""

from __future__ import annotations

from dataflex.config.refusals.record import Group, Refusal

_KEY = "dataflex.domains"

NO_COLUMN = Refusal(key=f"{_KEY}.column", why="{key}: the rows of {name!r} have no {column!r}{near}")
NO_BLOCK = Refusal(
    key=f"{_KEY}.column",
    why="{key}: {column!r} asks for the key {inner!r} of values that are no blocks in {name!r} ({kind})",
)
NESTED = Refusal(
    key=f"{_KEY}.column", why="{key}: {column!r} of {name!r} holds blocks or lists, which name nothing{near}"
)
NAMELESS = Refusal(
    key=f"{_KEY}.missing",
    why=f"{_KEY}.missing is required: {{rows}} rows have no {{what}}, the first of them row {{row}} of {{name!r}}",
    instead="name the domain of such rows",
)
NOT_KEPT = Refusal(key=f"{_KEY}.keep", why="{key}: no row has {kept!r} as its {what}{near}")
NOT_COMPARED = Refusal(
    key=f"{_KEY}.where", why="{key}: {column!r} of {name!r} holds {kind}, which {condition!r} cannot be compared with"
)
NO_FILE_COLUMN = Refusal(key=f"{_KEY}.column", why="{key}: {path} has no column {column!r}{near}")
FILE_ROWS = Refusal(key=f"{_KEY}.path", why="{key}: {path} {why}")
MANY = Refusal(
    key=f"{_KEY}.by",
    why=f"{_KEY}.by: {{what}} has {{count}} different values, and more than {{most}} are no domains",
    instead="name those to keep with dataflex.domains.keep",
)
NO_DOMAIN = Refusal(key="dataflex.mix.proportions", why="{key}: {name!r} is no domain{near}")
NO_VALUE = Refusal(key="dataflex.mix.proportions", why="{key} must name every domain, and {name!r} is missing")
OTHER_COUNT = Refusal(key="dataflex.mix.proportions", why="{key}: {given} given for {count} domains ({names})")
NOT_HELD_OUT = Refusal(
    key="dataflex.mix.eval_dataset",
    why="{key}: {name!r} is to be held out by domain, and {why}",
    instead="name a data set for each domain, as {{domain: data set}}",
)

DOMAINS = Group(
    title="With `dataflex.domains`",
    applies=lambda f: f.config.splits,
    refusals=(
        Refusal(
            key=_KEY,
            why=f"{_KEY} needs the order of rows, which is LLaMA-Factory's with weight alone",
            instead="add mix: stratified, which serves each domain by its size",
            when=lambda f: not f.config.plans_data,
        ),
        Refusal(
            key=_KEY,
            why=f"{_KEY} reads the names of all rows first, and streaming reads rows as they are served",
            instead="make a data set of each domain, or leave streaming out",
            when=lambda f: f.on("streaming"),
        ),
        *(
            NO_COLUMN,
            NO_BLOCK,
            NESTED,
            NAMELESS,
            NOT_KEPT,
            NOT_COMPARED,
            NO_FILE_COLUMN,
            FILE_ROWS,
            MANY,
            NO_DOMAIN,
            NO_VALUE,
            OTHER_COUNT,
            NOT_HELD_OUT,
        ),
    ),
)
