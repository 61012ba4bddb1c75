"""A corpus like SlimPajama in one file, mixed by source: python examples/slimpajama/run.py [key=value ...]

Run from the root of the repository, on a CPU, in about a minute. Everything goes to runs/slimpajama. The texts are those
that `dataflex-cli demo` finds on this machine; the names of sources are SlimPajama's.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from dataflex.cli import main
from dataflex.demo.data import build_domains, training_texts
from dataflex.demo.model import build_model
from dataflex.demo.sources import Row

SOURCES = {
    "RedPajamaC4": ("arithmetic", 300),
    "RedPajamaGithub": ("code", 250),
    "RedPajamaStackExchange": ("docs", 150),
    "RedPajamaWikipedia": ("topics", 100),
    "RedPajamaBook": ("licence", 30),
}


def write_corpus(folder: Path) -> None:
    """One file of rows to train on and one of held-out rows, with `text` and `meta`, which is JSON as text."""
    found = folder / "found"
    build_domains(found, rows_per_domain=300, heldout=20)
    info = {}
    for ending in ("", "_heldout"):
        rows = []
        for source, (domain, most) in SOURCES.items():
            lines = (found / f"{domain}{ending}.jsonl").read_text(encoding="utf-8").splitlines()[:most]
            for number, line in enumerate(lines):
                row = json.loads(line)
                meta = {"redpajama_set_name": source, "quality": 1 + number % 5}
                text = Row(row["instruction"], row["input"], row["output"]).text
                rows.append({"text": text, "meta": json.dumps(meta)})
        random.Random(0).shuffle(rows)
        file = folder / f"slimpajama{ending}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        info[file.stem] = {"file_name": file.name, "columns": {"prompt": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


def run(out: Path, overrides: list[str]) -> int:
    """Write corpus and model, train, and show the report; the exit status."""
    data, model = out / "data", out / "model"
    write_corpus(data)
    build_model(model, training_texts(data / "found"))
    paths = [f"model_name_or_path={model}", f"dataset_dir={data}", f"output_dir={out / 'odm'}"]
    status = main(["train", str(Path(__file__).with_name("train.yaml")), *paths, *overrides])
    return status or main(["report", str(out / "odm")])


if __name__ == "__main__":
    sys.exit(run(Path("runs/slimpajama"), sys.argv[1:]))
