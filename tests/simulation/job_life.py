"""A simulator of a job's life: ``python -m tests.simulation.job_life --seeds 10000 --procs 2``, ``--replay SEED``.

Ranks, batch scripts, requeues, Slurm, Ray, login nodes, users' commands, clocks that differ by minutes, a shared file
system that shows news late: a deterministic model, in which the code of marc-dist that decides runs unchanged. What the
model assumes stands at the top of ``job_life_files.py``, ``job_life_slurm.py``, ``job_life_ray.py`` and
``job_life_ranks.py``, what is promised in ``job_life_checks.py``. A seed draws a cluster, users and faults; the same
seed is the same story.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context

from tests.simulation.job_life_bugs import BUGS
from tests.simulation.job_life_plans import THEMES
from tests.simulation.job_life_story import Story, Told


def play(seed: int, theme: str | None = None) -> Told:
    """The story of a seed, about a theme of ``job_life_story.py``, or about what the seed draws."""
    return Story(seed, theme).play()


def stories(seeds: Sequence[int], procs: int, theme: str | None = None) -> Iterator[Told]:
    """The stories of some seeds, in their order."""
    if procs <= 1:
        yield from (play(seed, theme) for seed in seeds)
        return
    with get_context("spawn").Pool(procs) as pool:
        yield from pool.imap(partial(play, theme=theme), seeds, chunksize=50)


def planted(num: int) -> int:
    """Plant each mistake, and tell how many stories find it; 1 when one is found by none."""
    missed = 0
    for name, (theme, plant) in BUGS.items():
        with plant():
            found = [seed for seed in range(num) if play(seed, theme).broken]
        first = f", first seed {found[0]}" if found else ""
        print(f"{name}: {len(found)} of {num} stories ({theme or 'all themes'}){first}", flush=True)
        missed += not found
    return 1 if missed else 0


def summary(told: Iterable[Told], show: int) -> tuple[list[Told], Counter[str], Counter[str]]:
    """Stories with a broken promise, how often each fault came, and totals of what happened."""
    bad: list[Told] = []
    faults: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for one in told:
        faults.update(one.faults)
        totals.update({"stories": 1, **one.counts})
        if one.broken:
            bad.append(one)
            if len(bad) <= show:
                print(f"seed {one.seed}: {'; '.join(one.broken)}")
    return bad, faults, totals


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="play stories of a job's life, and check what is promised of it")
    parser.add_argument("--seeds", type=int, default=500, help="number of stories")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--procs", type=int, default=1, help="processes")
    parser.add_argument("--theme", choices=("any", *THEMES), help="what all stories are about")
    parser.add_argument(
        "--planted", action="store_true", help="plant each mistake of job_life_bugs.py, count who finds it"
    )
    parser.add_argument("--replay", type=int, metavar="SEED", help="tell one story event by event")
    options = parser.parse_args(argv)
    if options.replay is not None:
        told = play(options.replay, options.theme)
        print(*told.lines, sep="\n")
        print(*(told.broken or ["all promises kept"]), sep="\n")
        return 1 if told.broken else 0
    if options.planted:
        return planted(options.seeds)
    began = time.monotonic()
    seeds = range(options.first, options.first + options.seeds)
    bad, faults, totals = summary(stories(seeds, options.procs, options.theme), 20)
    came = ", ".join(f"{name} {number}" for name, number in faults.most_common())
    count = f"{totals['starts']} starts, {totals['events']} events"
    took = f"{time.monotonic() - began:.0f} s"
    print(f"{totals['stories']} stories in {took}: {count}; faults: {came}")
    print(
        f"{len(bad)} with a broken promise" + (f": seeds {', '.join(str(one.seed) for one in bad[:50])}" if bad else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
