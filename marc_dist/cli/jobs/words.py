"""The words of ``marc-jobs``: an action (``list`` where none is named), then its own options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from marc_dist.cli.command import HelpLayout, command_parser
from marc_dist.config import LaunchError

USAGE = """\
[list] [DIR ...] [options]
status | logs | resume RUN [options]
cancel RUN [RUN ...] [options]"""
EPILOG = """\
marc-jobs ACTION --help says more.

examples:
  marc-jobs
  marc-jobs status runs/a
  marc-jobs logs -f --rank all runs/a
  marc-jobs resume --nodes 2 runs/a cluster.partition=gpu
  marc-jobs list --json runs | jq '.[] | select(.state == "failed") | .run'

states: pending, running, done, stopped (was asked to stop, and saved), failed,
cancelled, unknown (with the reason).

exit codes:
  0    answered or done
  1    cancel: a job was not over in time
  2    a mistake in the command or its files
  130  Ctrl-C; the job goes on
  resume of a local job: the exit code of the job
"""
LOGS = """\
With --rank all each line begins with its [rank]. Logs carry no times: what is
there already comes rank after rank, what follows comes as it is written. On a
terminal, control characters other than colours are left out; a file or a pipe
gets the log as it is.
"""
ACTIONS = {
    "list": (
        "every job in these folders (default: runs)",
        "Every job in these folders and two levels below them, newest first; elements of\nan array under their parent.",
    ),
    "status": (
        "all that is known of one job, and what to do next",
        "All that is known of a job, and what to do next.",
    ),
    "logs": ("the last lines of rank 0; -f follows until the job is over", "What ranks print."),
    "cancel": ("ask jobs to save and stop", "Ask jobs to save and stop, and wait until they have."),
    "resume": (
        "go on from the newest checkpoint, on as many nodes as you like; of an array: the elements that are not done",
        "Go on with a run from its newest checkpoint, with the preset of its last job.\n"
        "Of an array, only elements that are not done are submitted.",
    ),
}
"""What ``marc-jobs`` can do: its line in the list of actions, and the head of its own help."""
WAIT_S = 150.0


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-jobs`` takes, with a parser below it for each action."""
    return _parsers()[0]


def read_words(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options on a command line; ``action`` says what they are for.

    Args:
        argv: the words, or None for those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    whole, actions = _parsers()
    if words[:1] in (["-h"], ["--help"], ["--version"]):
        whole.parse_args(words[:1])
    action = words.pop(0) if words and words[0] in ACTIONS else "list"
    return actions[action].parse_intermixed_args(words, argparse.Namespace(action=action))


def check_words(options: argparse.Namespace) -> None:
    """Refuse numbers that nothing could follow.

    Raises:
        LaunchError: names the option and what it may be.
    """
    if options.action == "logs" and options.lines < 0:
        raise LaunchError(f"--lines: expected 0 or more, got {options.lines}")
    if options.action == "cancel" and not options.timeout >= 0:
        raise LaunchError(f"--timeout: expected seconds, 0 or more, got {options.timeout:g}")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of ``marc-jobs``, and those of its actions."""
    whole = command_parser("jobs", USAGE, EPILOG)
    below = whole.add_subparsers(title="actions", metavar="ACTION", dest="action")
    actions = {
        name: below.add_parser(
            name,
            help=line,
            description=description,
            epilog=LOGS if name == "logs" else None,
            formatter_class=HelpLayout,
            prog=f"marc-jobs {name}",
        )
        for name, (line, description) in ACTIONS.items()
    }
    for name, words in actions.items():
        if name == "list":
            words.add_argument("dirs", nargs="*", metavar="DIR", help="where to look (default: runs)")
        elif name == "cancel":
            words.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
        else:
            words.add_argument("run", metavar="RUN", help="run folder")
    for name in ("list", "status"):
        actions[name].add_argument(
            "--json", action="store_true", help="for scripts: JSON with the same keys every time"
        )
    logs, cancel, resume = actions["logs"], actions["cancel"], actions["resume"]
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is over")
    logs.add_argument("--rank", default="0", metavar="R", help="whose log: a number, or all (default: 0)")
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="last lines of each log (default: 50)")
    cancel.add_argument("--no-wait", action="store_true", help="return as soon as the jobs are asked")
    cancel.add_argument("--timeout", type=float, default=WAIT_S, metavar="S", help="longest wait, in s (default: 150)")
    resume.add_argument("words", nargs="*", metavar="cluster.key=value", help="changes to the preset")
    resume.add_argument("--nodes", type=int, metavar="N", help="machines (default: as before)")
    resume.add_argument("--procs-per-node", type=int, metavar="N", help="processes on each (default: as before)")
    resume.add_argument("--force", action="store_true", help="resume even if it is unknown whether the job still runs")
    return whole, actions
