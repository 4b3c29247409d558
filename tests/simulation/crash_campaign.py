"""Every folder that a crash may leave, of every protocol, is opened; every call of every command fails once.

python -m tests.simulation.crash_campaign [--protocols NAME,...] [--every N] [--again N] [--calls all|none|STRIDE]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from tests.simulation.crash_check import check
from tests.simulation.crash_protocols import all_protocols
from tests.simulation.crash_states import Rules


def main() -> int:
    """The exit code: 1 when a fault was found."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--protocols", default="", help="names, with commas between; all by default")
    words.add_argument("--every", type=int, default=1, help="of so many states one is opened")
    words.add_argument("--again", type=int, default=5, help="of so many opened states one is gone on with")
    words.add_argument("--calls", default="1", help="of so many calls of a command one is failed; 0 = none")
    options = words.parse_args()
    chosen = [name.strip() for name in options.protocols.split(",") if name.strip()]
    lab = Path(tempfile.mkdtemp(prefix="marc-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        faults = _states(lab, chosen, options.every, options.again)
        if int(options.calls):
            from tests.simulation.failing_calls import campaign

            faults += campaign(lab, int(options.calls))
    finally:
        shutil.rmtree(lab, ignore_errors=True)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


def _states(lab: Path, chosen: list[str], every: int, again: int) -> list[str]:
    began, states, faults = time.monotonic(), 0, list[str]()
    for number, protocol in enumerate(all_protocols(lab)):
        for rules in get_args(Rules):
            if chosen and protocol.name not in chosen:
                continue
            place = lab / f"{number}-{rules}"
            place.mkdir()
            found = check(protocol, rules, place, every=every, again=again)
            print(found.line, flush=True)
            states += found.states
            faults += found.faults
    seconds = time.monotonic() - began
    print(f"{states} states in {seconds:.0f} s, {60 * states / max(seconds, 1e-9):.0f} a minute")
    return faults


if __name__ == "__main__":
    sys.exit(main())
