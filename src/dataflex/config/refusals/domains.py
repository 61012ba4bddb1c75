"""Refused with `dataflex.domains`."""

from __future__ import annotations

from dataflex.config.refusals.record import Facts, Group, Refusal

_KEY = "dataflex.domains"

NO_COLUMN = Refusal(key=f"{_KEY}.column", why="{key}: the rows of {name!r} have no {column!r}{near}")
NO_BLOCK = Refusal(
    key=f"{_KEY}.column",
    why="{key}: {column!r} asks for the key {inner!r} of values that are no blocks in {name!r} ({kind})",
)
NO_JSON = Refusal(
    key=f"{_KEY}.column",
    why="{key}: {column!r} asks for the key {inner!r} of text in {name!r} that is no JSON block ({why})",
)
NO_KEY = Refusal(
    key=f"{_KEY}.column",
    why="{key}: {column!r} asks for the key {inner!r} of JSON text in {name!r}, where no row has one value of one kind there",
)
NOT_TEXT = Refusal(
    key=f"{_KEY}.column", why="{key}: {column!r} of {name!r} holds values that cannot be read as text ({kind})"
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
NAMELESS_IN_STREAM = Refusal(
    key=f"{_KEY}.missing",
    why=f"{_KEY}.missing is required: a row of the stream {{name!r}} has no {{what}}",
    instead="name the domain of such rows",
)
NO_SIZES = Refusal(
    key="dataflex.mix",
    why="{key} goes by the number of rows, which is not known of domains in a stream that is read from elsewhere ({name!r})",
    instead="use {other}",
)
NOT_LOCAL = Refusal(
    key=_KEY,
    why=f"{_KEY} with streaming: {{name!r}} is read from elsewhere than a file on this machine (file_name), and {{why}}",
    instead="download it, or leave streaming out",
)
FEW_ROWS = Refusal(key=f"{_KEY}.k", why=f"{_KEY}.k: {{k}} clusters are asked for, and the data has {{rows}} rows")
NO_ENCODER = Refusal(key=f"{_KEY}.embedding_model", why=f"{_KEY}.embedding_model: {{why}}")
OTHER_CLUSTERS = Refusal(
    key=f"{_KEY}.path",
    why=f"{_KEY}.path: {{path}} {{why}}",
    instead="name another file, or remove this one, to make the clusters anew",
)
NO_CLUSTERS = Refusal(
    key=f"{_KEY}.path",
    why=f"{_KEY}.path: held-out rows are compared with the clusters, which tokenized_path does not keep",
    instead="name the file of the clusters",
)
NO_DOMAIN = Refusal(key="dataflex.mix.proportions", why="{key}: {name!r} is no domain{near}")
NO_VALUE = Refusal(key="dataflex.mix.proportions", why="{key} must name every domain, and {name!r} is missing")
OTHER_COUNT = Refusal(key="dataflex.mix.proportions", why="{key}: {given} given for {count} domains ({names})")
NOT_HELD_OUT = Refusal(
    key="dataflex.mix.eval_dataset",
    why="{key}: {name!r} is to be held out by domain, and {why}",
    instead="name a data set for each domain, as {{domain: data set}}",
)


def _alone(facts: Facts) -> bool:
    return bool(facts.weight) and not facts.config.plans_data


def _packs_alone(facts: Facts) -> bool:
    by_default = facts.stage == "pt" and facts.lf.get("packing") is None
    return _alone(facts) and (by_default or facts.on("packing") or facts.on("neat_packing"))


DOMAINS = Group(
    title="With `dataflex.domains`",
    applies=lambda f: f.config.splits,
    refusals=(
        Refusal(
            key=_KEY,
            why=f"{_KEY} with weight alone follows each row to its tokens, and packing joins rows of several domains",
            instead="add mix: stratified, which packs within a domain, or set packing: false",
            when=_packs_alone,
        ),
        Refusal(
            key=_KEY,
            why=f"{_KEY} with weight alone is not kept in tokenized_path",
            instead="add mix: stratified, or leave tokenized_path out",
            when=lambda f: _alone(f) and bool(f.lf.get("tokenized_path")),
        ),
        Refusal(
            key=f"{_KEY}.by",
            why=f"{_KEY}.by: {{config.domains.by}} reads what all rows say first, and streaming reads rows as they are served",
            instead="write it as a file for by: file, or leave streaming out",
            when=lambda f: f.on("streaming") and f.config.domains.by in ("length", "cluster"),
        ),
        *(
            NO_COLUMN,
            NO_BLOCK,
            NO_JSON,
            NO_KEY,
            NOT_TEXT,
            NESTED,
            NAMELESS,
            NOT_KEPT,
            NOT_COMPARED,
            NO_FILE_COLUMN,
            FILE_ROWS,
            MANY,
            NAMELESS_IN_STREAM,
            NO_SIZES,
            NOT_LOCAL,
            FEW_ROWS,
            NO_ENCODER,
            OTHER_CLUSTERS,
            NO_CLUSTERS,
            NO_DOMAIN,
            NO_VALUE,
            OTHER_COUNT,
            NOT_HELD_OUT,
        ),
    ),
)
