"""Completion for bash and zsh: ``python -m marc_dist.cli.completion SHELL DIR`` writes a script for each command.

shtab makes the scripts from the commands' own parsers, so they know every option. What argparse cannot say is added
here: which words are folders or files, the names of presets, and the settings (``loss.tau=``).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, get_args

import shtab

from marc_dist.cli import COMMANDS
from marc_dist.cli.command import HelpLayout, run_command
from marc_dist.cli.eval.words import TAKEN as EVAL_SETTINGS
from marc_dist.cli.search.words import TAKEN as SEARCH_SETTINGS
from marc_dist.cli.shard.words import CHECKS
from marc_dist.cluster.preset import KINDS, PREFIX
from marc_dist.config import Config, EvalConfig, list_presets, user_path
from marc_dist.config.load import schema_keys
from marc_dist.files import write_atomic

NAME = "python -m marc_dist.cli.completion"
FILES = ("FILE", "DIR_OR_ARCHIVE", "ENCODER")
FOLDERS = ("DIR", "RUN")
BASH_END = """
# A setting is not done with its "=": no blank after it, and no quoting.
_NAME() {
  _shtab_NAME "$@"
  local word
  for word in "${COMPREPLY[@]}"; do [[ $word == *= ]] || return 0; done
  (( ${#COMPREPLY[@]} )) && compopt +o filenames -o nospace 2>/dev/null
  return 0
}
complete -o bashdefault -F _NAME PROG
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code."""
    words = argparse.ArgumentParser(
        prog=NAME, description="Write completion scripts of all commands into a folder.", formatter_class=HelpLayout
    )
    words.add_argument("shell", choices=["bash", "zsh"], help="the shell that reads them")
    words.add_argument("dir", metavar="DIR", help="where they go; docs/completion.md names the folder")
    options = words.parse_args(argv)
    return run_command(NAME, lambda: _write(options.shell, options.dir))


def script(command: str, shell: str) -> str:
    """The completion script of one command.

    Args:
        command: a name in ``COMMANDS``.
        shell: bash or zsh.
    """
    parser: argparse.ArgumentParser = import_module(f"marc_dist.cli.{command}.words").parser()
    candidates = _candidates(command)
    for action in _actions(parser):
        if action.dest in candidates:
            action.complete = _words_or_files(f"{command}_{action.dest}", candidates[action.dest])  # type: ignore[attr-defined]
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    text = shtab.complete(parser, shell, root_prefix=f"marc_{command}")
    if shell == "bash":
        text += BASH_END.replace("NAME", f"marc_{command}").replace("PROG", parser.prog)
    return text


def _write(shell: str, folder: str) -> int:
    path = user_path(folder)
    for command in COMMANDS:
        write_atomic(path / f"{'_' if shell == 'zsh' else ''}marc-{command}", script(command, shell).encode())
    print(f"{len(COMMANDS)} scripts for {shell}: {path}")
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Everything that a parser and the parsers below it take."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action


def _candidates(command: str) -> dict[str, list[str]]:
    """What a word may be, besides a file, by the name under which the parser keeps it."""
    run = [f"{key}=" for key in schema_keys(Config)]
    cluster = sorted({f"{PREFIX}{key}=" for preset in KINDS.values() for key in schema_keys(preset)})
    data_sets, recipes = list_presets("shards"), list_presets("recipes")
    by_command: dict[str, dict[str, list[str]]] = {
        "shard": {"dataset": data_sets, "info": data_sets, "allow": list(CHECKS)},
        "train": {"arguments": [*recipes, *run]},
        "launch": {
            "preset": list_presets("launchers"),
            "arguments": ["train", "eval", "tune", *recipes, *run, *cluster],
        },
        "tune": {"arguments": [*list_presets("tune_spaces"), *recipes, *run]},
        "eval": {
            "arguments": [key for key in run if key.startswith(EVAL_SETTINGS)],
            "protocol": [str(name) for name in get_args(EvalConfig.model_fields["protocol"].annotation)],
        },
        "study": {
            "study": list_presets("studies"),
            "on": list_presets("launchers"),
        },
        "search": {"arguments": [key for key in run if key.startswith(SEARCH_SETTINGS)]},
        "jobs": {"words": cluster},
    }
    return by_command.get(command, {})


def _words_or_files(name: str, words: Sequence[str]) -> Any:
    """A completer of some words and of files; its name tells shtab's bash script that files are among them."""
    function, known = f"_marc_{name}_or_file", shlex.join(words)
    bash = f'{function}() {{\n  compgen -W {shlex.quote(" ".join(words))} -- "$1"\n  compgen -f -- "$1"\n}}'
    zsh = (
        f"{function}() {{\n  local -a words_known=({known})\n"
        "  if compset -P '*='; then _files; else compadd -S '' -a words_known; _files; fi\n}"
    )
    return {"bash": function, "zsh": function, "preamble": {"bash": bash, "zsh": zsh}}


if __name__ == "__main__":
    sys.exit(main())
