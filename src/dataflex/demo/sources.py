"""Rows of real text found in the running Python installation, and sums made up on the spot.

Every function here yields `Row`s in an order that depends on the seed and on the installed files alone.
"""

from __future__ import annotations

import ast
import random
import re
import sys
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEAD_CHARS = 200
ANSWER_CHARS = 320
MIN_ANSWER_CHARS = 40
_SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "encodings",
    "pydoc_data", "ensurepip", "__pycache__",
}  # fmt: skip
_LICENCE_NAME = re.compile(r"licen[cs]e|copying", re.IGNORECASE)
_LICENCE_CHARS = 200_000
# Always there, as LLaMA-Factory needs them: what else is installed must not change the rows.
_LICENSED = ("accelerate", "fonttools", "matplotlib", "numpy", "pandas", "pillow", "pyarrow", "torch")


@dataclass(frozen=True)
class Row:
    """One supervised example."""

    instruction: str
    input: str
    output: str

    @property
    def text(self) -> str:
        """The example as running text, without its instruction."""
        return f"{self.input}\n{self.output}" if self.input else self.output


def cut(text: str, limit: int) -> str:
    """The longest prefix of at most `limit` characters that ends at a line end, else at a space, else anywhere."""
    if len(text) <= limit:
        return text.rstrip()
    for boundary in ("\n", " "):
        end = text.rfind(boundary, limit // 2, limit + 1)
        if end > 0:
            return text[:end].rstrip()
    return text[:limit].rstrip()


def library_files(seed: int) -> list[Path]:
    """Standard library sources, tests and generated tables left out, in seeded order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
        if not any(part in _SKIPPED_FOLDERS or part.startswith("config-") for part in path.relative_to(root).parts)
    ]
    random.Random(f"{seed}/library").shuffle(files)
    return files


def _parse(path: Path) -> tuple[list[str], ast.Module] | None:
    try:
        with tokenize.open(path) as file:
            source = file.read()
        return source.splitlines(), ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _module_name(path: Path) -> str:
    parts = list(path.relative_to(sysconfig.get_path("stdlib")).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def code_rows(files: list[Path], per_file: int, seed: int) -> Iterator[Row]:
    """Functions to complete: signature and docstring in, body out. At most `per_file` from each of `files`."""
    for path in files:
        parsed = _parse(path)
        if parsed is None:
            continue
        lines, tree = parsed
        found = []
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            first = node.body[1:2] if ast.get_docstring(node, clean=False) is not None else node.body[:1]
            if not first or first[0].lineno == node.lineno:
                continue
            source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).splitlines()
            split = first[0].lineno - node.lineno
            head, body = "\n".join(source[:split]).rstrip(), "\n".join(source[split:])
            if len(head) <= LEAD_CHARS:
                found.append(Row("Complete this Python function.", head, cut(body, ANSWER_CHARS)))
        random.Random(f"{seed}/code/{_module_name(path)}").shuffle(found)
        yield from found[:per_file]


def docs_rows(files: list[Path], per_file: int, seed: int) -> Iterator[Row]:
    """Docstrings of functions and classes, asked for by name. At most `per_file` from each of `files`."""
    for path in files:
        parsed = _parse(path)
        if parsed is None:
            continue
        module = _module_name(path)
        found = []
        for node in ast.walk(parsed[1]):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            docstring = ast.get_docstring(node)
            if not docstring:
                continue
            if isinstance(node, ast.ClassDef):
                signature = f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})"
            else:
                signature = f"def {node.name}({ast.unparse(node.args)})"
            question = f"What does {node.name} in {module} do?"
            found.append(Row(question, cut(signature, LEAD_CHARS), cut(docstring, ANSWER_CHARS)))
        random.Random(f"{seed}/docs/{module}").shuffle(found)
        yield from found[:per_file]


def _passages(text: str) -> Iterator[tuple[str, str]]:
    """Whole paragraphs gathered into passages of up to `ANSWER_CHARS`, each split into (opening words, the rest)."""
    held = ""
    for paragraph in [*re.split(r"\n\s*\n", text), ""]:
        paragraph = cut(paragraph.strip("\n"), ANSWER_CHARS)
        if paragraph and len(held) + len(paragraph) < ANSWER_CHARS:
            held = f"{held}\n\n{paragraph}" if held else paragraph
            continue
        words = list(re.finditer(r"\S+", held))
        if len(words) > 16:
            start = words[8].start()
            yield held[:start].strip(), held[start:].rstrip()
        held = paragraph


def topic_rows(seed: int) -> Iterator[Row]:
    """Passages of the language reference that the interactive help shows. None where Python comes without it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    found = [
        Row(f"Continue the Python help on {name}.", opening, rest)
        for name in sorted(topics)
        for opening, rest in _passages(topics[name])
    ]
    random.Random(f"{seed}/topics").shuffle(found)
    yield from found


def licence_rows(seed: int) -> Iterator[Row]:
    """Passages of the licences of Python and of the packages in `_LICENSED`, as their installed versions word them."""
    files = [Path(folder) / "LICENSE.txt" for folder in (sysconfig.get_path("stdlib"), sys.base_prefix)]
    for folder in dict.fromkeys(sysconfig.get_path(key) for key in ("purelib", "platlib")):
        for package in _LICENSED:
            inside = [file for root in sorted(Path(folder).glob(f"{package}-*.dist-info")) for file in root.rglob("*")]
            files += [file for file in sorted(inside) if _LICENCE_NAME.search(file.name)]
    found = []
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")[:_LICENCE_CHARS]
        # Layout differs from copy to copy of one licence; words do not, and repeats are told by words.
        paragraphs = "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
        found += [Row("Continue this licence.", opening, rest) for opening, rest in _passages(paragraphs)]
    random.Random(f"{seed}/licence").shuffle(found)
    yield from found


def sums(seed: int) -> Iterator[tuple[int, int]]:
    """Endless distinct pairs of addends of two to four digits; (a, b) and (b, a) count as the same pair."""
    rng = random.Random(f"{seed}/sums")
    seen: set[tuple[int, int]] = set()
    while True:
        a, b = (rng.randrange(10, 10 ** rng.randint(2, 4)) for _ in range(2))
        pair = (min(a, b), max(a, b))
        if pair not in seen:
            seen.add(pair)
            yield a, b


def worked_sum(a: int, b: int) -> str:
    """a + b digit by digit from the right, the total last."""
    steps, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width)), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x} + {y} + {carry} = {total}")
        carry = total // 10
    return "\n".join([*steps, f"{a} + {b} = {a + b}"])
