"""The table of all commands.

A new command is one line here and one module with two functions:

    configure(parser)          the description, the arguments, and examples in the epilog
    run(parser, arguments)     what it does; the exit status. ConfigError ends it in one line with status 2

The module is imported when its command is chosen. What it needs beside the standard library it imports in `run`, so that help,
the documentation and completion stay fast. `docs/commands.md` is rendered from the parsers (`make docs`).
"""

from __future__ import annotations

import importlib
from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Protocol, cast


class Module(Protocol):
    """What the module of a command has."""

    def configure(self, parser: ArgumentParser) -> None: ...

    def run(self, parser: ArgumentParser, arguments: list[str]) -> int: ...


@dataclass(frozen=True)
class Command:
    name: str
    module: str
    """Below `dataflex.cli`."""
    summary: str
    has_levels: bool = False
    """Whether -q and -v, anywhere on the line, set what it says."""

    def load(self) -> Module:
        return cast(Module, importlib.import_module(f"dataflex.cli.{self.module}"))


_GROUPS: dict[str, tuple[Command, ...]] = {
    "Run": (
        Command("plan", "running.plan", "what a training will do and cost, and what to look at before it"),
        Command("train", "running.train", "train with the dataflex block of a .yaml or .json file", has_levels=True),
        Command(
            "select", "running.select", "select rows before training, and write them as data sets", has_levels=True
        ),
        Command("evaluate", "running.evaluate", "judge a finished model by held-out data and tasks", has_levels=True),
        Command("doremi", "running.doremi", "DoReMi: train reference model, proxy and final model", has_levels=True),
        Command("compare", "running.compare", "which method helped, by how much, and what is noise", has_levels=True),
        Command("demo", "running.demo", "show on a tiny model what select, mix and weight are for", has_levels=True),
    ),
    "Results": (
        Command("report", "results.report", "what runs decided, served, learned and cost, as tables or a page"),
        Command("show", "results.show", "rows of a selection, or the life of one row"),
    ),
    "Components": (
        Command("list", "components.list", "every selector, mixer, weighter, order and signal, one line each"),
        Command("describe", "components.describe", "what a component does, its parameters, its cost and its paper"),
        Command("new", "components.new", "write a package with a component of your own that runs"),
    ),
    "Start": (
        Command("init", "starting.init", "write a commented configuration to start from"),
        Command("examples", "starting.examples", "list, print or copy the configurations that come with the package"),
        Command("schema", "starting.schema", "the JSON schema of a configuration file, for editors"),
    ),
    "This installation": (
        Command("env", "about.env", "versions, devices and plug-ins, for a report of a problem"),
        Command("completion", "about.completion", "a script that completes commands in bash, zsh or tcsh"),
        Command("version", "about.version", "the installed version"),
    ),
    "Passed on to LLaMA-Factory": (
        Command("export", "running.llamafactory", "merge an adapter, and write the model"),
        Command("chat", "running.llamafactory", "talk to a model in the terminal"),
        Command("api", "running.llamafactory", "serve a model over HTTP"),
        Command("webui", "running.llamafactory", "train in a browser"),
        Command("webchat", "running.llamafactory", "talk to a model in a browser"),
    ),
}
COMMANDS: dict[str, Command] = {command.name: command for group in _GROUPS.values() for command in group}


def grouped() -> dict[str, tuple[Command, ...]]:
    """The commands below the headings of the overview."""
    return _GROUPS


def overview() -> str:
    """What `dataflex-cli` prints by itself."""
    lines = ["usage: dataflex-cli COMMAND ..."]
    for heading, commands in _GROUPS.items():
        lines += ["", f"{heading}:", *(f"  {command.name:<11} {command.summary}" for command in commands)]
    leveled = ", ".join(command.name for command in COMMANDS.values() if command.has_levels)
    return "\n".join(
        [
            *lines,
            "",
            f"Options of {leveled}:",
            "  -q, --quiet    errors only",
            "  -v, --verbose  also what the libraries print, and where an error comes from",
            "",
            "dataflex-cli COMMAND --help explains a command, with examples.",
        ]
    )
