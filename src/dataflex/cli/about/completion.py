"""`completion`"""

from __future__ import annotations

from argparse import Action, ArgumentParser

from dataflex import notices
from dataflex.cli.parsing import PROGRAM, examples, parser_of
from dataflex.cli.tree import COMMANDS

_FOLDERS, _FILES = ("DIR",), ("CONFIG", "FILE")


def configure(parser: ArgumentParser) -> None:
    parser.description = "Print a script that completes commands, options, names of components and files."
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell it is for")
    parser.epilog = examples(
        'eval "$(dataflex-cli completion bash)"   # in ~/.bashrc',
        "dataflex-cli completion zsh > ~/.zfunc/_dataflex-cli   # a folder of $fpath",
        "dataflex-cli completion tcsh > ~/.dataflex.csh   # and `source` it in ~/.tcshrc",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)

    import shtab

    notices.show(shtab.complete(_tree(), shell=options.shell))
    return 0


def _tree() -> ArgumentParser:
    """One parser of all commands, with what stands in the place of each argument."""
    root = ArgumentParser(prog=PROGRAM)
    below = root.add_subparsers(metavar="COMMAND")
    for command in COMMANDS.values():
        made = parser_of(command, below.add_parser(command.name, help=command.summary))
        made.description = command.summary
        for action in made._actions:
            _complete(action)
    below.add_parser("help", help="the commands")
    return root


def _complete(action: Action) -> None:
    import shtab

    from dataflex.cli.components.found import component_names
    from dataflex.cli.starting.examples import example_names

    if action.metavar in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.metavar in _FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.metavar == "COMPONENT":
        action.choices = component_names()
    elif action.metavar == "EXAMPLE":
        action.choices = example_names()
