"""Every call of every command to the file system fails once, with every error; then the command is started again.

    python -m tests.simulation.failing_campaign [--commands NAME,...] [--every N] [--journal FILE] [--limit-s SECONDS]

It takes hours: with ``--journal`` it may be broken off, and goes on where it was; ``--every`` takes a fair sample.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.simulation.campaign_journal import NOT_OVER, CampaignJournal, add_words, laboratory
from tests.simulation.failing_calls import ERRORS, Command, Failing, all_commands


def _cases(count: int) -> list[tuple[int, int]]:
    """Calls and errors of a command: each call once, with the errors in turn, then each with the others."""
    return [(k, ERRORS[(k + turn) % len(ERRORS)]) for turn in range(len(ERRORS)) for k in range(1, count + 1)]


def _one(command: Command, place: Path, journal: CampaignJournal, every: int) -> bool:
    """Fail the calls of a command that have not failed yet, of so many cases one; False when time is up."""
    known = journal.told.get(command.name)
    cases = _cases(known["count"])[::every] if known else []
    left = [one for one in cases if _name(command, *one) not in journal.told]
    if known and not left:
        return True
    case = Failing(command, place)
    if not known:
        journal.note(command.name, count=case.count, aims=case.aims)
        left = _cases(case.count)[::every]
    else:
        case.aims = [aim if isinstance(aim, int) else (aim[0], aim[1]) for aim in known["aims"]]
    for k, error in left:
        if journal.out_of_time:
            return False
        wrong = case.at(k, error)
        journal.note(_name(command, k, error), wrong=wrong)
        if wrong is not None:
            print(wrong, flush=True)
    return True


def _name(command: Command, k: int, error: int) -> str:
    return f"{command.name}: {k} {errno.errorcode[error]}"


def _show(commands: Sequence[Command], journal: CampaignJournal) -> list[str]:
    """A line a command; what was wrong."""
    faults: list[str] = []
    for command in commands:
        known = journal.told.get(command.name)
        if known is None:
            print(f"{command.name:20} not begun")
            continue
        cases = [_name(command, *one) for one in _cases(known["count"])]
        tried = [journal.told[name]["wrong"] for name in cases if name in journal.told]
        wrong = [one for one in tried if one is not None]
        print(f"{command.name:20} {known['count']:5} calls, failed {len(tried)} of {len(cases)}: {len(wrong)} faults")
        faults += wrong
    return faults


def main() -> int:
    """The exit code: 1 when a fault was found, 3 when time was up before the end."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--commands", default="", help="names, with commas between; all by default")
    words.add_argument("--every", type=int, default=1, help="of so many cases one is tried")
    add_words(words)
    options = words.parse_args()
    chosen = [name.strip() for name in options.commands.split(",") if name.strip()]
    journal = CampaignJournal(options.journal, options.limit_s)
    with laboratory() as lab:
        commands = [one for one in all_commands(lab) if not chosen or one.name in chosen]
        over = all(
            _one(command, lab / f"calls-{number}", journal, options.every) for number, command in enumerate(commands)
        )
    faults = _show(commands, journal)
    print(f"{len(faults)} faults" + ("" if over else "; not over yet, start it again"))
    return 1 if faults else 0 if over else NOT_OVER


if __name__ == "__main__":
    sys.exit(main())
