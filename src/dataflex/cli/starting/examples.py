"""`examples`"""

from __future__ import annotations

import re
import shutil
from argparse import ArgumentParser
from pathlib import Path

from dataflex import notices
from dataflex.cli.parsing import examples
from dataflex.errors import ConfigError, nearest
from dataflex.shipped import shipped

_FOLDER = "examples"
_WITHIN = re.compile(rf"\b{_FOLDER}/[\w./-]*\w")


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Configurations that come with the package. Those of `demo` train with what `dataflex-cli demo` writes; those of"
        " `real` name models and data sets of the hub. Without a name they are listed; with one, the file is printed or copied."
    )
    parser.add_argument("name", metavar="EXAMPLE", nargs="?", help="such as select_loss or real/mix_odm_lora")
    parser.add_argument(
        "--copy", metavar="DIR", type=Path, help="copy the file, and the files that it names, instead of printing it"
    )
    parser.epilog = examples(
        "dataflex-cli examples",
        "dataflex-cli examples real/mix_odm_lora > mix.yaml",
        "dataflex-cli examples mix_file --copy .",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)
    if options.name is None and options.copy is not None:
        parser.error("--copy needs the name of an example")
    if options.name is None:
        width = max(map(len, example_names()))
        notices.show("\n".join(f"{name:<{width}}  {_about(_find(name))}" for name in example_names()))
    elif options.copy is None:
        notices.show(_find(options.name).read_text(encoding="utf-8").rstrip("\n"))
    else:
        notices.show("\n".join(_copy(_find(options.name), options.copy)))
    return 0


def example_names() -> list[str]:
    """Folder and name of every configuration, such as demo/select_loss."""
    root = shipped(_FOLDER)
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml"))


def _find(name: str) -> Path:
    """The file of an example, with or without its folder and suffix. ConfigError if there is none."""
    wanted = name.removesuffix(".yaml").removeprefix(f"{_FOLDER}/")
    known = example_names()
    found = [each for each in known if wanted in (each, each.partition("/")[2])]
    if not found:
        raise ConfigError(f"unknown example {name!r}{nearest(wanted, [*known, *(n.partition('/')[2] for n in known)])}")
    return shipped(_FOLDER) / f"{found[0]}.yaml"


def _about(path: Path) -> str:
    """The first sentence of its first comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def _copy(path: Path, folder: Path) -> list[str]:
    """Copy an example and what it names of the examples; lines that say so. ConfigError where a file is there already."""
    root, text = shipped(_FOLDER), path.read_text(encoding="utf-8")
    named = {found for found in _WITHIN.findall(text) if _source(root, found).exists() and not found.endswith(".yaml")}
    targets = {found: folder / Path(found).name for found in named}
    own = folder / path.name
    for target in (own, *targets.values()):
        if target.exists():
            raise ConfigError(f"{target} is there already; copy into another folder")
    itself = f"{_FOLDER}/{path.relative_to(root).as_posix()}"
    for found, target in sorted({**targets, itself: own}.items(), reverse=True):
        text = re.sub(rf"{re.escape(found)}(?![\w-])", target.as_posix(), text)
    folder.mkdir(parents=True, exist_ok=True)
    for found, target in targets.items():
        source = _source(root, found)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    own.write_text(text, encoding="utf-8")
    return [f"wrote {target}" for target in (own, *sorted(targets.values()))]


def _source(root: Path, found: str) -> Path:
    return root / found.removeprefix(f"{_FOLDER}/")
