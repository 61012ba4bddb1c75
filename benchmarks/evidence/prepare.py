"""Writes the data of the evidence grids: small real sets drawn from a folder of larger ones, the same rows for every method.

    python benchmarks/evidence/prepare.py --data DIR --model MODEL --out runs/evidence

DIR holds <name>.jsonl and <name>.heldout.jsonl with the columns instruction, input and output; MODEL is the name or folder of the
pretrained model. OUT/data is a LLaMA-Factory dataset_dir, OUT/model a link to the model, and OUT/small a small one to train from
scratch.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataflex.demo.model import build_model

Row = dict[str, Any]

# The pool of the selections: ten instruction sets. Two of the targets are of a set of the pool, two are not.
POOL = (
    "alpaca", "dolly_3k", "lima", "code_alpaca", "gsm8k_train", "openbookqa", "boolq", "bbh", "gpteacher_roleplay",
    "mmlu_dev_val",
)  # fmt: skip
# Of each target: the set, the file of the rows aimed at, and that of the rows measured.
TARGETS = {
    "arc": ("arc_challenge", "arc_challenge", "arc_challenge.heldout"),
    "gsm8k": ("gsm8k_test", "gsm8k_test", "gsm8k_test.heldout"),
    "code": ("code_alpaca", "code_alpaca.heldout", "code_alpaca.heldout"),
    "squad": ("squad_xquad_en", "squad_xquad_en", "squad_xquad_en.heldout"),
}
NOISY = ("gsm8k_train", "code_alpaca", "squad_xquad_en", "dolly_3k")
DOMAINS = ("arxiv", "book", "c4", "commoncrawl", "github", "stackexchange", "wikipedia")
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
TEXT = {"prompt": "text"}
LONGEST = 700  # characters of a row: cutoff_len 256 cuts no answer
# The model trained from scratch: 2.6 million parameters.
SMALL = {"hidden_size": 192, "layers": 4, "heads": 4, "kv_heads": 4, "intermediate_size": 512, "vocab_size": 4096}


class Folder:
    """A dataset_dir that is written."""

    def __init__(self, source: Path, out: Path) -> None:
        self.source, self.out = source, out
        self.info: dict[str, Any] = {}
        out.mkdir(parents=True, exist_ok=True)

    def rows(self, file: str, seed: str) -> list[Row]:
        """All rows of a file that are short enough, in an order of their own."""
        lines = (self.source / f"{file}.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        rows = [{key: row[key] for key in COLUMNS.values()} for row in rows]
        rows = [row for row in rows if row["output"].strip() and sum(map(len, row.values())) <= LONGEST]
        random.Random(f"{file} {seed}").shuffle(rows)
        return rows

    def write(self, name: str, rows: Sequence[Row], columns: dict[str, str] = COLUMNS) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        self.info[name] = {"file_name": f"{name}.jsonl", "columns": columns}

    def close(self) -> None:
        (self.out / "dataset_info.json").write_text(json.dumps(self.info, indent=1) + "\n")


def selection(folder: Folder, rows: int, target_rows: int, heldout: int) -> None:
    """pool_<set>: `rows` rows each. target_<name> and heldout_<name>: rows aimed at, and others that are measured.
    elsewhere: held-out rows of all sets of the pool."""
    elsewhere = []
    for name in POOL:
        folder.write(f"pool_{name}", folder.rows(name, "pool")[:rows])
        elsewhere += folder.rows(f"{name}.heldout", "elsewhere")[: max(1, heldout // 5)]
    folder.write("elsewhere", elsewhere)
    for name, (_, aimed, measured) in TARGETS.items():
        target = folder.rows(aimed, "target")
        held = target[target_rows:] if aimed == measured else folder.rows(measured, "target")
        folder.write(f"target_{name}", target[:target_rows])
        folder.write(f"heldout_{name}", held[:heldout])


def reweighting(folder: Folder, rows: int, clean: int, heldout: int, share: float) -> None:
    """noisy_<set>: `rows` rows; `share` of them have the answer of another row of the same set, and weight 0. noisy: all of
    these. clean and heldout_<set>: others, as they are."""
    noisy, reference = [], []
    for name in NOISY:
        drawn = folder.rows(name, "noisy")
        reference += drawn[rows : rows + clean]
        own = list(exchanged(drawn[:rows], share, random.Random(name)))
        folder.write(f"noisy_{name}", own, COLUMNS | {"weight": "weight"})
        noisy += own
        if f"heldout_{name}" not in folder.info:
            folder.write(f"heldout_{name}", folder.rows(f"{name}.heldout", "heldout")[:heldout])
    random.Random("noisy").shuffle(noisy)
    folder.write("noisy", noisy, COLUMNS | {"weight": "weight"})
    folder.write("clean", reference)


def pretraining(folder: Folder, characters: int, heldout: int, probed: int) -> list[str]:
    """pt_<domain>: texts from the front of each file, as much of each domain as it has of all; heldout_<domain> and
    probe_<domain>: others. Some of the texts."""
    texts = {name: _texts(folder.source / f"{name}.jsonl") for name in DOMAINS}
    sizes = {name: sum(map(len, found)) for name, found in texts.items()}
    some = []
    for name, found in texts.items():
        drawn = list(_first(found, characters * sizes[name] / sum(sizes.values())))
        folder.write(f"pt_{name}", [{"text": text} for text in drawn], TEXT)
        unseen = _texts(folder.source / f"{name}.heldout.jsonl")
        held = list(_first(unseen, heldout))
        folder.write(f"heldout_{name}", [{"text": text} for text in held], TEXT)
        folder.write(f"probe_{name}", [{"text": text} for text in _first(unseen[len(held) :], probed)], TEXT)
        some += drawn[:60]
    return some


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").split("\n") if line]


def _first(texts: Sequence[str], characters: float) -> Iterator[str]:
    left = characters
    for text in texts:
        yield text
        left -= len(text)
        if left <= 0:
            return


def exchanged(rows: Sequence[Row], share: float, rng: random.Random) -> Iterator[Row]:
    """The rows with a weight: 1, or 0 for `share` of them, whose answers go round in a circle."""
    chosen = rng.sample(range(len(rows)), round(share * len(rows)))
    answers = {to: rows[of]["output"] for to, of in zip(chosen, [*chosen[1:], chosen[0]], strict=True)}
    for place, row in enumerate(rows):
        # An equal answer is not a wrong one.
        wrong = place in answers and answers[place] != row["output"]
        yield {**row, "output": answers.get(place, row["output"]), "weight": float(not wrong)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with <name>.jsonl and <name>.heldout.jsonl")
    parser.add_argument("--model", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="where data and model are put")
    parser.add_argument("--rows", type=int, default=60, help="rows of each set of the pool (60)")
    given = parser.parse_args()
    folder = Folder(given.data, given.out / "data")
    selection(folder, given.rows, target_rows=32, heldout=80)
    texts = pretraining(folder, characters=16_000_000, heldout=60_000, probed=15_000)
    if not (given.out / "small").is_dir():
        build_model(given.out / "small", texts, **SMALL)
    reweighting(folder, rows=100, clean=60, heldout=40, share=0.3)
    folder.close()
    link = given.out / "model"
    if not link.is_symlink():
        link.symlink_to(given.model.resolve())
    print(f"{len(folder.info)} data sets in {folder.out}")


if __name__ == "__main__":
    main()
