"""The table of refusals: every record is looked for or raised, names its key, and is in the documentation."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from dataflex.config.refusals import domains, loaded
from dataflex.config.refusals.record import Group, Refusal
from dataflex.config.refusals.table import GROUPS
from dataflex.config.schema import SLOT_KEYS, DoremiKeys, own_keys

ROOT = Path(__file__).parents[1]
RECORDS = [(group, refusal) for group in GROUPS for refusal in group.refusals]
LATER = [
    (name, record)
    for module in (loaded, domains)
    for name, record in vars(module).items()
    if isinstance(record, Refusal)
]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("group, refusal", RECORDS, ids=[f"{g.title}-{r.key}" for g, r in RECORDS])
def test_a_line_begins_with_the_key_of_its_record(group: Group, refusal: Refusal) -> None:
    start = refusal.key if not refusal.template.startswith("{key}") else "{key}"
    assert re.match(re.escape(start) + r"[\s:]", refusal.template)
    assert "\n" not in refusal.template


def test_what_is_decided_later_is_in_the_table_and_raised_somewhere() -> None:
    """A record without a predicate that no place raises would be a promise that nothing keeps."""
    source = "".join(path.read_text() for path in (ROOT / "src" / "dataflex").rglob("*.py"))
    listed = [refusal for _, refusal in RECORDS]
    for name, record in LATER:
        assert record in listed or any(r.template == record.template for r in listed), name
        assert re.search(rf"refused\.{name}\.(error|line)\(", source), name
    assert {r.template for r in listed if r.when is None} <= {r.template for _, r in LATER}


def test_the_documentation_is_what_the_code_says() -> None:
    """`python docs/generate.py` writes it: docs/refused.md, and the tables of keys between markers."""
    pages = generator().rendered()
    assert {page.name for page in pages} == {"refused.md", "configuration.md", "offline.md", "evaluate.md"}
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run python docs/generate.py"


def test_every_key_and_every_refusal_has_a_row() -> None:
    docs = generator()
    page = docs.refused()
    for _, refusal in RECORDS:
        assert docs._prose(refusal.why.replace("{key}", refusal.key)) in page
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    for name in ("block", "select", "mix", "weight", "weights", "order"):
        assert f"<!-- keys: {name} -->" in configuration
    assert "| `keep_ratio` | number in (0, 1] | 0.5 |" in configuration
    assert "| `interval` | integer >= 1 | required" in configuration


def test_pages_that_name_keys_in_their_text_name_all_of_them() -> None:
    extending, doremi = ((ROOT / "docs" / page).read_text() for page in ("extending.md", "doremi.md"))
    reserved = extending[extending.index("Some names are taken by keys") : extending.index("and the method `files`")]
    assert set(re.findall(r"`(\w+)`", reserved)) == {
        "name",
        *(k for models in SLOT_KEYS.values() for k in own_keys(*models)),
    }
    for key in own_keys(DoremiKeys):
        assert f"`dataflex.doremi.{key}`" in doremi or f"`.{key}`" in doremi
