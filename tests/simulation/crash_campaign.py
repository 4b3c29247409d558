"""Every folder that a crash may leave, of every protocol, is opened.

python -m tests.simulation.crash_campaign [--protocols NAME,...] [--every N] [--again N] [--journal FILE]
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from tests.simulation.campaign_journal import NOT_OVER, CampaignJournal, add_words, laboratory
from tests.simulation.crash_check import check
from tests.simulation.crash_protocols import all_protocols
from tests.simulation.crash_states import Rules


def main() -> int:
    """The exit code: 1 when a fault was found, 3 when time was up before the end."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--protocols", default="", help="names, with commas between; all by default")
    words.add_argument("--every", type=int, default=1, help="of so many states one is opened")
    words.add_argument("--again", type=int, default=5, help="of so many opened states one is gone on with")
    add_words(words)
    options = words.parse_args()
    chosen = [name.strip() for name in options.protocols.split(",") if name.strip()]
    journal = CampaignJournal(options.journal, options.limit_s)
    over = True
    with laboratory() as lab:
        for number, protocol in enumerate(all_protocols(lab)):
            for rules in get_args(Rules):
                case = f"{protocol.name}, {rules}"
                if case in journal.told or (chosen and protocol.name not in chosen):
                    continue
                if journal.out_of_time:
                    over = False
                    continue
                place = lab / f"{number}-{rules}"
                place.mkdir()
                found = check(protocol, rules, place, every=options.every, again=options.again)
                print(found.line, flush=True)
                journal.note(case, states=found.states, seconds=found.seconds, faults=found.faults)
    faults = [fault for one in journal.told.values() for fault in one["faults"]]
    print(*faults, sep="\n")
    states, seconds = (sum(one[what] for one in journal.told.values()) for what in ("states", "seconds"))
    print(f"{states} states in {seconds:.0f} s, {60 * states / max(seconds, 1e-9):.0f} a minute, {len(faults)} faults")
    if not over:
        print("not over yet, start it again")
    return 1 if faults else 0 if over else NOT_OVER


if __name__ == "__main__":
    sys.exit(main())
