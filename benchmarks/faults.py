"""Faults thrown at real training jobs, one after the other; every run must end with the weights of an undisturbed one.

    python benchmarks/faults.py [--seed 0] [--count 200] [--kinds kill-rank,...] [--per-run 5] [--data DIR]

A run of the built-in sample, or of any shards, is started with ``marc-launch local`` on one to three processes (drawn
at every start), hit by a fault, and started again, several times, until it is left alone to the end. After every fault
the job must end or go on by itself within ``LIMIT_S``, and what it says must name the cause. The draws come from the
seed; the moments are shares of an undisturbed run's time, so they differ a little from machine to machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import OUT, write

LIMIT_S = 60.0
TOLERANCE = 1e-9
WORDS = [  # of a data.dir and a train.global_batch
    "data.image_size=32", "data.num_workers=1", "data.retries=0", "data.cache=none", "model.backbone=test_resnet",
    "model.pretrained=false",
    "model.head_hidden=16",
    "model.head_dim=8", "optim.name=sgd", "optim.lr=0.02", "train.epochs=5",
    "train.device=cpu", "train.precision=float64", "train.checkpoint_every=3", "train.keep_checkpoints=3",
    "train.log_every=1", "train.timeout_s=10",
]  # fmt: skip
INJECT = '''
"""Put on the path of a rank: breaks the images of one rank in one step, as a broken decoder or a sick GPU would."""
import importlib.abc, importlib.util, os, sys

class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "marc_dist.training.setup":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            step, rank, value = os.environ["MARC_FAULT_NONFINITE"].split(":")
            class Loader(module.TrainLoader):
                def epoch(self, epoch, start_step=0):
                    for place, batch in enumerate(super().epoch(epoch, start_step), start=start_step):
                        mine = os.environ.get("RANK", "0") == rank
                        if mine and epoch * self.steps_per_epoch + place + 1 == int(step) and len(batch.images):
                            batch.images[-1, 0, 0, 0] = float(value)
                        yield batch
            module.TrainLoader = Loader
        spec.loader.exec_module = exec_module
        return spec

if os.environ.get("MARC_FAULT_NONFINITE"):
    sys.meta_path.insert(0, _Finder())
'''


class Unexpected(Exception):
    """A fault that cost more than it may."""


class Data(NamedTuple):
    """Shards, and the global batch that trains on them."""

    folder: Path
    batch: int


@dataclass
class Ended:
    """How a start of a job ended."""

    code: int
    said: str
    seconds: float


@dataclass
class Job:
    """One start of a run."""

    run: Path
    process: subprocess.Popen[str]
    began: float

    @classmethod
    def start(cls, run: Path, data: Data, world: int, env: dict[str, str] | None = None) -> Job:
        """``marc-launch local`` on ``world`` processes, in the background."""
        command = [sys.executable, "-m", "marc_dist.cli.launch", "--procs-per-node", str(world), "local", "train"]
        words = [f"data.dir={data.folder}", f"train.global_batch={data.batch}", f"train.run_dir={run}", *WORDS]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        out = subprocess.PIPE
        process = subprocess.Popen([*command, *words], stdout=out, stderr=subprocess.STDOUT, text=True, env=environment)
        return cls(run, process, time.monotonic())

    def ranks(self) -> list[int]:
        """Processes of the ranks, in order."""
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        return [int(word) for word in children.split()]

    def wait(self, seconds: float) -> bool:
        """Whether the job still runs after a while."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self) -> Ended:
        """Wait for the end, at most ``LIMIT_S``."""
        ranks = self.ranks()
        try:
            said, _ = self.process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            for pid in [*ranks, self.process.pid]:
                os.kill(pid, signal.SIGKILL)
            raise Unexpected(f"still ran {LIMIT_S:.0f} s after the fault") from None
        left = [pid for pid in ranks if Path(f"/proc/{pid}").exists() and not _gone(pid)]
        if left:
            raise Unexpected(f"processes {left} are left behind")
        return Ended(self.process.returncode, said, time.monotonic() - self.began)


def _gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process goes within a while; a zombie is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def expect(ended: Ended, code: int, *words: str) -> str:
    """The job ended as it should: ``code`` and all ``words``, or finished before the fault could matter."""
    if ended.code == 0:
        return "finished before"
    missing = [word for word in words if word not in ended.said]
    if ended.code != code or missing:
        raise Unexpected(f"expected exit code {code} and {list(words)}, got {ended.code}:\n{ended.said[-1500:]}")
    return "ended as told"


@dataclass
class Campaign:
    """Runs, faults, and the weights that all of them must reach."""

    folder: Path
    draw: random.Random
    seconds: float = 0.0  # of an undisturbed run on two processes
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    data: Data = Data(Path(), 40)
    small: Path | None = None  # a file system of its own
    nonfinite: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Pack the sample if no shards were given, train undisturbed, mount a small file system where it is allowed."""
        if self.data.folder == Path():
            self.data = Data(self.folder / "data", self.data.batch)
            pack = [sys.executable, "-m", "marc_dist.cli.shard", "--dataset", "sample", "--out", str(self.data.folder)]
            subprocess.run([*pack, "--workers", "2"], check=True, capture_output=True)
        (self.folder / "inject").mkdir()
        (self.folder / "inject" / "sitecustomize.py").write_text(INJECT)
        ended = Job.start(self.folder / "whole", self.data, 2).end()
        if ended.code:
            raise SystemExit(f"the undisturbed run failed:\n{ended.said}")
        self.seconds, self.weights = ended.seconds, final_weights(self.folder / "whole")
        mount = self.folder / "small"
        mount.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], capture_output=True)
        self.small = mount if done.returncode == 0 else None

    def close(self) -> None:
        """Unmount."""
        if self.small is not None:
            subprocess.run(["umount", str(self.small)], check=False)

    def moment(self) -> float:
        """Seconds after a start, somewhere in a run."""
        return self.draw.uniform(0.2, 1.0) * self.seconds

    def world(self) -> int:
        """Processes of the next start."""
        return self.draw.choice([1, 2, 2, 2, 3])

    def check(self, run: Path, weights: dict[str, torch.Tensor]) -> None:
        """A run that was left alone has ended with these weights."""
        found = final_weights(run)
        worst = max(
            float((found[k] - weights[k]).abs().max() / weights[k].abs().max().clamp(min=1e-12)) for k in weights
        )
        if not worst < TOLERANCE:
            raise Unexpected(f"{run}: the weights are off by {worst:.1e}")


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*.pt"))
    model = torch.load(newest, weights_only=True)["model"]
    return {name: value for name, value in model.items() if value.is_floating_point()}


def kill_rank(c: Campaign, run: Path) -> str:
    """Kill -9 of a random rank at a random moment."""
    job = Job.start(run, c.data, c.world())
    if job.wait(c.moment()) and (ranks := job.ranks()):
        os.kill(c.draw.choice(ranks), signal.SIGKILL)
    return expect(job.end(), 1, "killed by SIGKILL")


def kill_launcher(c: Campaign, run: Path) -> str:
    """Kill -9 of the launcher: its ranks and their loader workers must go with it."""
    job = Job.start(run, c.data, c.world())
    if job.wait(c.moment()):
        job.process.kill()
    ended = job.end()
    return expect(ended, -9)


def kill_saving(c: Campaign, run: Path) -> str:
    """Kill -9 of rank 0 while a half-written checkpoint lies there."""
    job = Job.start(run, c.data, c.world())
    folder = run / "checkpoints"
    before = set(folder.glob(".*.tmp"))
    number, seen = c.draw.randint(1, 6), 0
    while job.process.poll() is None:
        found = set(folder.glob(".*.tmp")) - before
        if found:
            seen += 1
            if seen >= number and (ranks := job.ranks()):
                os.kill(ranks[0], signal.SIGKILL)
                break
    return expect(job.end(), 1, "killed by SIGKILL")


def damage(c: Campaign, path: Path) -> None:
    """Flip some bytes of a file, or cut it."""
    size = path.stat().st_size
    if c.draw.random() < 0.5:
        os.truncate(path, c.draw.randrange(size))
        return
    with path.open("r+b") as file:
        for _ in range(c.draw.randint(1, 8)):
            place = c.draw.randrange(size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ c.draw.randint(1, 255)]))


def damage_checkpoint(c: Campaign, run: Path) -> str:
    """Bytes of the newest checkpoint are flipped or cut off: the one before must be taken."""
    found = sorted((run / "checkpoints").glob("step-*.pt"))
    if len(found) < 2:
        return kill_rank(c, run)
    damage(c, found[-1])
    ended = Job.start(run, c.data, c.world()).end()
    if ended.code or f"{found[-1].name}: checksum differs; trying the one before" not in ended.said:
        raise Unexpected(f"exit code {ended.code}:\n{ended.said[-1500:]}")
    return "went on"


def _damage_data(c: Campaign, run: Path, name: str, *words: str) -> str:
    copy = run.with_name(f"{run.name}-data")
    shutil.copytree(c.data.folder, copy)
    paths = sorted(copy.glob(name))
    path = c.draw.choice(paths)
    damage(c, path)
    ended = Job.start(run, Data(copy, c.data.batch), c.world()).end()
    shutil.rmtree(copy)
    if ended.code == 0:
        return "not met"  # padding of the tar, or samples of another split
    return expect(ended, 2, path.name, *words)


def damage_shard(c: Campaign, run: Path) -> str:
    """Bytes of a shard are flipped or cut off: the error names it, and the sample where it is one."""
    return _damage_data(c, run, "train-*.tar")


def damage_index(c: Campaign, run: Path) -> str:
    """Bytes of the index are flipped or cut off."""
    return _damage_data(c, run, "index.parquet", "not the index that dataset.json was written with")


def full_disk(c: Campaign, run: Path) -> str:
    """The run folder's file system fills up; space is made; the run goes on."""
    if c.small is None:
        return "not allowed here"
    place = c.small / run.name
    if run.exists():
        shutil.copytree(run, place)
    job = Job.start(place, c.data, c.world())
    filler = c.small / "filler"
    if job.wait(c.moment()):
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                pass
    ended = job.end()
    filler.unlink(missing_ok=True)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(place, run)
    shutil.rmtree(place)
    return expect(ended, 2, "cannot be written", "free space")


def nonfinite(c: Campaign, run: Path) -> str:
    """NaN or infinity in the images of one rank: all ranks skip that step, and the ids are written down."""
    other = run.with_name(f"{run.name}-nonfinite")
    step, value = c.draw.randint(2, 9), c.draw.choice(["nan", "inf", "-inf"])
    world = c.draw.choice([2, 3])
    path = f"{c.folder / 'inject'}:{os.environ.get('PYTHONPATH', '')}"

    def start(place: Path, size: int, rank: int) -> None:
        env = {"PYTHONPATH": path, "MARC_FAULT_NONFINITE": f"{step}:{rank}:{value}"}
        ended = Job.start(place, c.data, size, env).end()
        if ended.code or f"step {step}: loss or gradients not finite; skipped on all ranks" not in ended.said:
            raise Unexpected(f"exit code {ended.code}:\n{ended.said[-1500:]}")

    if str(step) not in c.nonfinite:
        alone = c.folder / f"nonfinite-{step}"
        start(alone, 1, 0)
        c.nonfinite[str(step)] = final_weights(alone)
    rank = c.draw.randrange(world)
    start(other, world, rank)
    (line,) = [json.loads(text) for text in (other / "skipped.jsonl").read_text().splitlines()]
    bad = [entry["rank"] for entry in line["ranks"] if entry["nonfinite_images"]]
    if (line["step"], bad) != (step, [rank]):
        raise Unexpected(f"skipped.jsonl names step {line['step']}, ranks {bad}; it was step {step}, rank {rank}")
    c.check(other, c.nonfinite[str(step)])
    return "skipped by all"


def stop_rank(c: Campaign, run: Path) -> str:
    """SIGSTOP of a rank: the others name it and end."""
    job = Job.start(run, c.data, c.draw.choice([2, 3]))
    stopped = None
    if job.wait(c.moment()) and (ranks := job.ranks()):
        stopped = c.draw.choice(ranks)
        os.kill(stopped, signal.SIGSTOP)
    return expect(job.end(), 1, f"process {stopped})" if stopped else "")


def ask_rank(c: Campaign, run: Path) -> str:
    """SIGTERM, SIGUSR1 or SIGUSR2 to one rank: all save the same step and leave with code 85."""
    job = Job.start(run, c.data, c.world())
    number = c.draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
    if job.wait(c.moment()) and (ranks := job.ranks()):
        os.kill(c.draw.choice(ranks), number)
    ended = job.end()
    if ended.code == 1 and f"killed by {number.name}" in ended.said:
        return "died before it could listen"  # a signal in the first moments of a process, before Python runs
    return expect(ended, 85, "saved after step")


KINDS: dict[str, Callable[[Campaign, Path], str]] = {
    "kill-rank": kill_rank,
    "kill-launcher": kill_launcher,
    "kill-saving": kill_saving,
    "checkpoint": damage_checkpoint,
    "shard": damage_shard,
    "index": damage_index,
    "full-disk": full_disk,
    "nonfinite": nonfinite,
    "stop-rank": stop_rank,
    "signal": ask_rank,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--count", type=int, default=200, help="faults")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--per-run", type=int, default=5, help="faults that one run gets before it is left alone")
    parser.add_argument("--data", type=Path, default=Path(), help="a shard folder; the built-in sample by default")
    parser.add_argument("--batch", type=int, default=40, help="samples of a global batch")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of faults.json")
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    strange = set(kinds) - set(KINDS)
    if strange:
        parser.error(f"--kinds: unknown {', '.join(sorted(strange))}; known are {', '.join(KINDS)}")
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="marc-faults-") as folder:
        campaign = Campaign(Path(folder), random.Random(args.seed), data=Data(args.data, args.batch))
        try:
            campaign.prepare()
            print(f"undisturbed: {campaign.seconds:.1f} s", flush=True)
            for number in range(0, args.count, args.per_run):
                thrown = [kinds[(number + i) % len(kinds)] for i in range(min(args.per_run, args.count - number))]
                failures += one_run(campaign, campaign.folder / f"run-{number}", thrown, outcomes)
        finally:
            campaign.close()
    total = sum(outcomes.values())
    minutes = (time.monotonic() - began) / 60
    for name, times in sorted(outcomes.items()):
        print(f"{times:4d}  {name}")
    print(f"{total} faults, {len(failures)} cost a run, {minutes:.1f} min")
    figures: dict[str, Any] = {"seed": args.seed, "faults": total, "outcomes": outcomes, "failures": failures}
    write("faults", {**figures, "minutes": minutes}, args.out)
    return 1 if failures else 0


def one_run(c: Campaign, run: Path, kinds: list[str], outcomes: Counter[str]) -> list[str]:
    """Throw faults at one run, then leave it alone; what went wrong."""
    try:
        for kind in kinds:
            place = f"{run.name}, {kind}"
            start = time.monotonic()
            outcome = KINDS[kind](c, run)
            outcomes[f"{kind}: {outcome}"] += 1
            print(f"{place}: {outcome}, {time.monotonic() - start:.1f} s", flush=True)
        place = f"{run.name}, left alone"
        ended = Job.start(run, c.data, c.world()).end()
        if ended.code:
            raise Unexpected(f"exit code {ended.code}:\n{ended.said[-1500:]}")
        c.check(run, c.weights)
    except Unexpected as error:
        outcomes[f"{kind}: LOST"] += 1
        print(f"LOST  {place}: {error}", flush=True)
        return [f"{place}: {error}"]
    shutil.rmtree(run)
    return []


if __name__ == "__main__":
    sys.exit(main())
