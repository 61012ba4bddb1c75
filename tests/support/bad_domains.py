"""Wrong blocks `dataflex.domains`, and data that does not fit them, each with the words that its one line must hold."""

from __future__ import annotations

import json
from typing import Any

Config = dict[str, Any]
NAMED = [
    {"instruction": f"What is {i}?", "output": f"It is {i}.", "meta": {"s": "ab"[i % 2], "q": i}} for i in range(8)
]
TEXT = [{**row, "meta": json.dumps(row["meta"])} for row in NAMED]
BY = {"by": "column", "column": "meta.s"}


def _utf8(rows: list[Config]) -> bytes:
    lines = [json.dumps(row).encode() for row in rows]
    return b"\n".join([*lines[:3], lines[3].replace(b"What", b"\xff\xfe"), *lines[4:]])


# {case: (words, the block, rows of the data set, other keys)}
DOMAINS: dict[str, tuple[list[str], Any, Any, Config]] = {
    "domains in words": (["dataflex.domains", "must be a block"], "by column", NAMED, {}),
    "domains by a word that is misspelt": (["dataflex.domains.by", "'column'"], {"by": "colum"}, NAMED, {}),
    "domains by a number": (["dataflex.domains.column"], {"by": "column", "column": 3}, NAMED, {}),
    "domains by a column that is not there": (
        ["dataflex.domains.column", "'meta.t'", "'meta.s'"],
        {"by": "column", "column": "meta.t"},
        NAMED,
        {},
    ),
    "domains by blocks": (["dataflex.domains.column", "'meta'"], {"by": "column", "column": "meta"}, NAMED, {}),
    "domains by a key of text that is no JSON": (
        ["dataflex.domains.column", "no JSON block", "row 2"],
        BY,
        [*TEXT[:2], {**TEXT[2], "meta": "{s: a}"}, *TEXT[3:]],
        {},
    ),
    "domains by a key that the JSON text has not": (
        ["dataflex.domains.column", "'t'", "no row has"],
        {"by": "column", "column": "meta.t"},
        TEXT,
        {},
    ),
    "domains by JSON text of two kinds": (
        ["dataflex.domains.column", "'s'", "one kind"],
        BY,
        [*TEXT[:7], {**TEXT[7], "meta": '{"s": 4}'}],
        {},
    ),
    "domains, a row without a name": (
        ["dataflex.domains.missing", "row 5"],
        BY,
        [*TEXT[:5], {**TEXT[5], "meta": "{}"}, *TEXT[6:]],
        {},
    ),
    "domains, bytes that are no UTF-8": (["dataset", "'own'"], BY, _utf8(NAMED), {}),
    "domains, a name that no row has": (["dataflex.domains.keep", "'c'"], {**BY, "keep": ["a", "c"]}, NAMED, {}),
    "domains, a condition on text": (
        ["dataflex.domains.where[0]", "'meta.s'", "compared"],
        {"where": {"column": "meta.s", "min": 3}},
        NAMED,
        {},
    ),
    "domains, a condition that no row meets": (
        ["dataflex.domains.where", "no row of 'own'"],
        {"where": {"column": "meta.q", "min": 99}},
        TEXT,
        {},
    ),
    "domains, a condition without a bound": (
        ["dataflex.domains.where[0]", "min, max or equals"],
        {"where": {"column": "meta.q"}},
        NAMED,
        {},
    ),
    "domains, proportions of another name": (
        ["dataflex.mix.proportions", "'c'"],
        BY,
        NAMED,
        {"mix": {"name": "static", "proportions": {"a": 0.5, "b": 0.3, "c": 0.2}}},
    ),
    "domains, a file that is a folder": (["dataflex.domains.path"], {"by": "file", "path": "data"}, NAMED, {}),
    "domains, a file that is no table": (
        ["dataflex.domains.path", "config.yaml"],
        {"by": "file", "path": "config.yaml"},
        NAMED,
        {},
    ),
    "domains, clusters of too few rows": (
        ["dataflex.domains.k", "8 rows"],
        {"by": "cluster", "k": 9, "embedding_model": "nowhere"},
        NAMED,
        {},
    ),
    "domains, an encoder that is not there": (
        ["dataflex.domains.embedding_model", "'./nowhere'"],
        {"by": "cluster", "k": 2, "embedding_model": "./nowhere"},
        NAMED,
        {},
    ),
    "domains, edges that fall": (["dataflex.domains.edges"], {"by": "length", "edges": [9, 3]}, NAMED, {}),
    "domains beside packs with weight alone": (
        ["dataflex.domains", "packing"],
        BY,
        NAMED,
        {"mix": None, "weight": "loss", "packing": True},
    ),
}
