"""The demonstration's data sets, written as a `dataset_dir` that LLaMA-Factory reads."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dataflex.demo.sources import (
    MIN_ANSWER_CHARS,
    Row,
    code_rows,
    docs_rows,
    library_files,
    licence_rows,
    sums,
    topic_rows,
    worked_sum,
)

DOMAINS = ("code", "docs", "topics", "licence", "arithmetic")
HELDOUT, CORPUS = "_heldout", "corpus"
_SFT = {"prompt": "instruction", "query": "input", "response": "output"}
_TEXT = {"prompt": "text"}
_PAIRS = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
_KTO = {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}
_MIN_ROWS = 10
_SHINGLE = 5


class _Distinct:
    """Remembers every row taken, over all domains and both splits, and refuses one that repeats another."""

    def __init__(self) -> None:
        self._exact: set[str] = set()
        self._shingles: set[tuple[str, ...]] = set()

    def take(self, rows: Iterator[Row], count: int) -> list[Row]:
        """The first `count` rows that are new and long enough; fewer when `rows` runs out."""
        taken: list[Row] = []
        for row in rows:
            if len(taken) == count:
                break
            if len(row.output) >= MIN_ANSWER_CHARS and self._is_new(row):
                taken.append(row)
        return taken

    def _is_new(self, row: Row) -> bool:
        """Whether prompt and answer are unseen and at most half of the row's runs of five words are.

        Packages copy each other's licences and docstrings with a name or a date changed, so equality is not enough.
        """
        keys = {" ".join(row.output.split()), " ".join(f"{row.instruction} {row.input}".split())}
        words = row.text.split()
        shingles = {tuple(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
        if keys & self._exact or 2 * len(shingles & self._shingles) > len(shingles):
            return False
        self._exact |= keys
        self._shingles |= shingles
        return True


def _text_domains(count: int, seed: int) -> dict[str, list[Row]]:
    """Up to `count` rows of each domain of found text."""
    # Code and docs read different modules: else one's answer would be part of the other's prompt.
    files = library_files(seed)
    halves = {"code": files[::2], "docs": files[1::2]}
    per_file = {name: max(6, 4 * count // max(1, len(half))) for name, half in halves.items()}
    sources = {
        "code": code_rows(halves["code"], per_file["code"], seed),
        "docs": docs_rows(halves["docs"], per_file["docs"], seed),
        "topics": topic_rows(seed),
        "licence": licence_rows(seed),
    }
    distinct = _Distinct()
    return {name: distinct.take(rows, count) for name, rows in sources.items()}


def _of_corpus(row: dict[str, Any], domain: str) -> dict[str, Any]:
    return {**{name: row[name] for name in _SFT.values()}, "meta": {"redpajama_set_name": domain}}


def _wrong(total: int, rng: random.Random) -> int:
    return total + rng.choice([-10, -2, -1, 1, 2, 10, 100])


def build_domains(out_dir: str | Path, rows_per_domain: int = 400, heldout: int = 40, seed: int = 0) -> dict[str, int]:
    """Write the data sets and `dataset_info.json` into `out_dir`; return the number of rows of each data set by name.

    A domain D of `DOMAINS` gives D and D_heldout (instruction, input, output) and D_text and D_text_heldout (text);
    arithmetic also gives arithmetic_pairs (chosen, rejected) and arithmetic_kto (kto_tag) with their held-out parts,
    and its rows have a weight, the digits of the sum. `corpus` and `corpus_heldout` are the rows of all domains in one data
    set, each with its domain as `redpajama_set_name` of the block `meta`, as in SlimPajama. A domain with too little text
    gives fewer rows, a fifth of them held out at most, and is left out below 10 rows. No held-out row of a domain repeats
    a training row. Equal arguments give equal files on one Python installation. ValueError if a number of rows is not
    positive.
    """
    if rows_per_domain < 1 or heldout < 1:
        raise ValueError(f"rows_per_domain and heldout must be positive, not {rows_per_domain} and {heldout}")
    count = rows_per_domain + heldout
    addends = sums(seed)
    domains = _text_domains(count, seed)
    domains["arithmetic"] = [
        Row("Work out the sum.", f"{a} + {b}", worked_sum(a, b)) for a, b in islice(addends, count)
    ]
    rng = random.Random(f"{seed}/preferences")
    pairs = [
        {"instruction": f"What is {a} + {b}?", "chosen": f"{a} + {b} = {a + b}",
         "rejected": f"{a} + {b} = {_wrong(a + b, rng)}"}
        for a, b in islice(addends, count)
    ]  # fmt: skip
    judged = [
        {"instruction": f"What is {a} + {b}?", "output": f"{a} + {b} = {a + b if i % 2 == 0 else _wrong(a + b, rng)}",
         "kto_tag": i % 2 == 0}
        for i, (a, b) in enumerate(islice(addends, count))
    ]  # fmt: skip

    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    info: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    corpus: dict[str, list[dict[str, Any]]] = {"": [], HELDOUT: []}

    def write(name: str, rows: list[dict[str, Any]], columns: dict[str, str], ranking: bool = False) -> None:
        held = min(heldout, len(rows) // 5) if len(rows) < count else heldout
        put(name, rows[held:], columns, ranking)
        put(name + HELDOUT, rows[:held], columns, ranking)
        if columns == _SFT:
            corpus[""] += [_of_corpus(row, name) for row in rows[held:]]
            corpus[HELDOUT] += [_of_corpus(row, name) for row in rows[:held]]

    def put(name: str, rows: list[dict[str, Any]], columns: dict[str, str], ranking: bool = False) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        info[name] = {"file_name": f"{name}.jsonl", "columns": columns, **({"ranking": True} if ranking else {})}
        sizes[name] = len(rows)

    for name in DOMAINS:
        rows = domains[name]
        if len(rows) < min(_MIN_ROWS, count):
            continue
        # Rows arrive file by file; the held-out part has to come from all of them.
        random.Random(f"{seed}/split/{name}").shuffle(rows)
        weights = [{"weight": len(row.output.split()[-1])} if name == "arithmetic" else {} for row in rows]
        write(name, [vars(row) | weight for row, weight in zip(rows, weights)], _SFT)
        write(f"{name}_text", [{"text": row.text} for row in rows], _TEXT)
    for part, mixed in corpus.items():
        random.Random(f"{seed}/corpus").shuffle(mixed)
        put(CORPUS + part, mixed, _SFT)
    write("arithmetic_pairs", pairs, _PAIRS, ranking=True)
    write("arithmetic_kto", judged, _KTO)
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return sizes


def training_texts(data_dir: str | Path) -> Iterator[str]:
    """What a tokenizer may learn from: prompts and texts of the training rows in `data_dir`, domain by domain."""
    for name in DOMAINS:
        path = Path(data_dir) / f"{name}.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                for line in file:
                    row = json.loads(line)
                    yield row["instruction"]
                    yield Row(row["instruction"], row["input"], row["output"]).text
