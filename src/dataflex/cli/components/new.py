"""`new`"""

from __future__ import annotations

import keyword
import re
from argparse import ArgumentParser
from pathlib import Path

from dataflex import notices
from dataflex.cli.parsing import examples
from dataflex.errors import ConfigError

_FAMILIES = {"selector": "select", "mixer": "mix", "weighter": "weight", "order": "order"}


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Write a package with a component of your own: a class that runs as it stands, its entry point in pyproject.toml, and a"
        " test. Nothing that is there is written over."
    )
    parser.add_argument("kind", choices=tuple(_FAMILIES), help="what is written")
    parser.add_argument("name", metavar="NAME", help="its name in a configuration: small letters, digits and _")
    parser.add_argument("--package", metavar="DIR", type=Path, help="folder of the package (dataflex_NAME)")
    parser.epilog = examples(
        "dataflex-cli new selector rare_words",
        "dataflex-cli new weighter softer --package ~/packages/softer",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)
    family = _FAMILIES[options.kind]
    _check_name(family, options.kind, options.name)
    package = f"dataflex_{options.name}"
    folder = (options.package or Path(package)).expanduser()
    files = _files(options.kind, options.name, package)
    there = [folder / name for name in files if (folder / name).exists()]
    if there:
        raise ConfigError(f"{there[0]} is there already; name another folder with --package")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    notices.show(_next_commands(family, options.kind, options.name, package, folder, list(files)))
    return 0


def class_name(name: str, kind: str) -> str:
    """`rare_words`, `selector` -> `RareWordsSelector`."""
    words = name.removesuffix(f"_{kind}").split("_")
    return "".join(word.capitalize() for word in words) + kind.capitalize()


def _check_name(family: str, kind: str, name: str) -> None:
    from dataflex.components.registry import FAMILIES

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot be a name: it takes small letters, digits and _, and begins with a letter")
    if name == "custom" or name in FAMILIES[family][0]:
        raise ConfigError(f"a {kind} called {name!r} is built in, and would be found before yours; choose another name")


def _files(kind: str, name: str, package: str) -> dict[str, str]:
    from dataflex.cli.components import skeletons

    cls = class_name(name, kind)
    component, test = skeletons.COMPONENTS[kind], skeletons.TESTS[kind]
    values = {"name": name, "cls": cls, "package": package, "kind": kind}

    def filled(text: str) -> str:
        for key, value in values.items():
            text = text.replace(f"<{key}>", value)
        return text

    return {
        "pyproject.toml": filled(skeletons.PROJECT),
        f"src/{package}/__init__.py": filled('"""The <kind> <name> for dataflex."""\n'),
        f"src/{package}/{name}.py": filled(component),
        f"tests/test_{name}.py": filled(test),
    }


def _next_commands(family: str, kind: str, name: str, package: str, folder: Path, files: list[str]) -> str:
    path, by = f"{package}.{name}:{class_name(name, kind)}", " dataflex.order.by=length" if family == "order" else ""
    return "\n".join(
        [
            *(f"wrote {folder / file}" for file in files),
            "",
            "Test it:",
            f"  PYTHONPATH={folder}/src python -m pytest {folder}/tests",
            "Use it without installing it, in any configuration:",
            f'  PYTHONPATH={folder}/src dataflex-cli train example.yaml "dataflex.{family}.name={path}"{by}',
            f"Install it, and use it as `name: {name}`:",
            f"  pip install --no-deps -e {folder}",
            f"  dataflex-cli describe {name}",
            f"  dataflex-cli train example.yaml dataflex.{family}.name={name}{by}",
        ]
    )
