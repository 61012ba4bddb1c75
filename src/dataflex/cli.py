"""The commands; no logic of their own."""

from __future__ import annotations

import sys

from dataflex import notices
from dataflex.base.processes import children
from dataflex.base.processes.stopping import stoppable
from dataflex.errors import nearest
from dataflex.version import __version__

USAGE = """usage: dataflex-cli COMMAND

  train CONFIG [key=value ...]   train with the dataflex block of a .yaml or .json file (or LLaMA-Factory's --key value)
  select CONFIG [key=value ...]  select rows before training, and write them as data sets that LLaMA-Factory reads
  doremi CONFIG [key=value ...]  DoReMi: train reference and proxy, and the final model with the proportions they find
  demo [OUT] [--steps N]         train four tiny models on real text and compare them; no network, a few minutes
  schema [--for COMMAND] [--output FILE]
                                 JSON schema of the file that train, select or doremi reads, for editors
  version                        the installed version
  export, chat, api, webui, webchat, env
                                 passed on to LLaMA-Factory

  -q, --quiet                    of train, select, doremi: errors only
  -v, --verbose                  of the same: every decision as well, and where an error comes from
"""
_LAUNCHED = ("train", "select", "doremi")
_PASSED_ON = ("export", "chat", "api", "webui", "webchat", "env")


def main(arguments: list[str] | None = None) -> int:
    """Exit status of a command line, of this process if there are no arguments."""
    children.die_with_parent()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    return stoppable(lambda: _run(argv), last=arguments is None)


def _run(argv: list[str]) -> int:
    command, rest = (argv[0], argv[1:]) if argv else ("help", [])
    if command in (*_LAUNCHED, "demo"):
        rest = notices.take_level(rest)
    asks = command in _LAUNCHED and rest[:1] in ([], ["-h"], ["--help"])
    if command in ("help", "-h", "--help") or asks:
        notices.show(USAGE.rstrip("\n"))
        return 0
    if command in ("version", "-v", "--version"):
        notices.show(f"dataflex {__version__}")
        return 0
    if command in _LAUNCHED:
        from dataflex.base.launching.launch import launch

        return launch(command, rest)
    if command == "demo":
        from dataflex.demo.run import main as demo

        return demo(rest)
    if command == "schema":
        from dataflex.base.commands.schema import main as schema

        return schema(rest)
    if command in _PASSED_ON:
        return children.run(["-m", "llamafactory.cli", command, *rest], ours=False)
    notices.error(
        f"unknown command {command!r}{nearest(command, (*_LAUNCHED, 'demo', 'schema', 'version', *_PASSED_ON))}"
    )
    return 2
