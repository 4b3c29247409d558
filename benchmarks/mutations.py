"""Seeded bugs in the loss, each put into a copy of the package: the tests must notice every one.

    python benchmarks/mutations.py [--only WORD]

A bug that no test notices is printed as MISSED and makes the exit code 1. Each bug stands below as the text that it
replaces; ``tests/test_benchmarks.py`` holds these texts to the code.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from common import write

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("marc_dist", "tests", "launchers", "shards", "benchmarks", "pyproject.toml")
LOSSES = "tests/objective/test_global_objective.py"
IMPLEMENTATIONS = "tests/objective/test_implementations.py"
TRAINER = "tests/training/test_trainer.py"
STREAM = "tests/data/test_stream.py"
FROZEN = "tests/training/test_frozen.py"
TRIPLET = "tests/objective/test_triplet.py"
GOLDEN = "tests/objective/test_golden.py"
CHECKS = "tests/objective/test_checks.py"
MODULES = "tests/test_losses.py"


class Mutation(NamedTuple):
    """A bug, and where a test should stumble over it."""

    name: str
    path: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "count: labels without a partner are counted",
        "marc_dist/objective/targets.py",
        "valid = sets.labels * (carriers > 1)",
        "valid = sets.labels.clone()",
        LOSSES,
    ),
    Mutation(
        "count: of this rank instead of the global batch",
        "marc_dist/training/step.py",
        'loss = comm.world() * parts.sum / (totals["count"] or 1.0)',
        "loss = comm.world() * parts.sum / (float(parts.count) or 1.0)",
        TRAINER,
    ),
    Mutation(
        "world factor missing",
        "marc_dist/training/step.py",
        "loss = comm.world() * parts.sum",
        "loss = parts.sum",
        TRAINER,
    ),
    Mutation(
        "self not masked (streamed)",
        "marc_dist/objective/streamed.py",
        'similarities[inside, tile.own[inside] - start] = float("-inf")',
        "pass",
        LOSSES,
    ),
    Mutation(
        "self not masked (triton)",
        "marc_dist/objective/kernels.py",
        "hidden = (own[:, None] == (column + first_column)[None, :]) | ~in_columns[None, :]",
        "hidden = own[:, None] < 0",
        IMPLEMENTATIONS,
    ),
    Mutation(
        "self masked without the offset of the rank",
        "marc_dist/objective/streamed.py",
        "self.own = pairs.first + self.softmaxes.anchor",
        "self.own = self.softmaxes.anchor",
        LOSSES,
    ),
    Mutation(
        "self among the positives",
        "marc_dist/objective/streamed.py",
        "pulled -= pull.own[pairs.rows] * (anchors * candidates[pairs.own_slice()]).sum(dim=1)",
        "pass",
        LOSSES,
    ),
    Mutation(
        "temperature in the numerator only (streamed)",
        "marc_dist/objective/streamed.py",
        "similarities.mul_(inverse)",
        "similarities.div_(self.pairs.settings.tau)",
        LOSSES,
    ),
    Mutation(
        "temperature in the numerator only (triton)",
        "marc_dist/objective/kernels.py",
        "x = x * inverse",
        "x = x / tl.load(constants_ptr)",
        IMPLEMENTATIONS,
    ),
    Mutation(
        "no floor under the temperature",
        "marc_dist/objective/temperatures.py",
        "return t.clamp(min=s.t_min)",
        "return t",
        LOSSES,
    ),
    Mutation(
        "weights not normalised",
        "marc_dist/objective/weights.py",
        "relative = relative / self.scale.to(relative)",
        "relative = 1 * relative",
        LOSSES,
    ),
    Mutation(
        "weights normalised by this rank's pairs",
        "marc_dist/objective/targets.py",
        "for rows in self.sets.chunks():\n            total = total",
        "for rows in (self.mine,):\n            total = total",
        LOSSES,
    ),
    Mutation(
        "counts of this rank's batch",
        "marc_dist/objective/global_objective.py",
        "        dtype = anchors.dtype if",
        "        from marc_dist.objective.statistics import label_statistics\n"
        "        statistics = statistics or label_statistics(anchor_labels)\n"
        "        dtype = anchors.dtype if",
        LOSSES,
    ),
    Mutation(
        "Weighted MACL: mean over all labels of an anchor, also those without a partner",
        "marc_dist/objective/targets.py",
        "share / num_valid.clamp(min=1)[:, None], (num_valid > 0).to(share)",
        "share / sets.sizes.clamp(min=1)[:, None], (num_valid > 0).to(share)",
        LOSSES,
    ),
    Mutation(
        "tiles: the maximum of a row is not carried over",
        "marc_dist/objective/streamed.py",
        "total.mul_((top - higher).exp_())",
        "total.mul_(1)",
        IMPLEMENTATIONS,
    ),
    Mutation(
        "half precision stays half precision",
        "marc_dist/objective/global_objective.py",
        "dtype = anchors.dtype if anchors.dtype == torch.float64 else torch.float32",
        "dtype = anchors.dtype",
        IMPLEMENTATIONS,
    ),
    Mutation(
        "weights: strength before the clip",
        "marc_dist/objective/weights.py",
        "relative.clamp_(s.clip_min, s.clip_max).sub_(1).mul_(s.strength).add_(1)",
        "relative.sub_(1).mul_(s.strength).add_(1).clamp_(s.clip_min, s.clip_max)",
        GOLDEN,
    ),
    Mutation(
        "weights: strength moves the bounds of the clip",
        "marc_dist/objective/weights.py",
        "relative.clamp_(s.clip_min, s.clip_max)",
        "relative.clamp_(1 + s.strength * (s.clip_min - 1), 1 + s.strength * (s.clip_max - 1))",
        GOLDEN,
    ),
    Mutation(
        "weights: no floor of the clip",
        "marc_dist/objective/weights.py",
        "relative.clamp_(s.clip_min, s.clip_max)",
        "relative.clamp_(max=s.clip_max)",
        GOLDEN,
    ),
    Mutation(
        "weights: no ceiling of the clip",
        "marc_dist/objective/weights.py",
        "relative.clamp_(s.clip_min, s.clip_max)",
        "relative.clamp_(min=s.clip_min)",
        GOLDEN,
    ),
    Mutation(
        "weights: clipped before they are relative to their mean",
        "marc_dist/objective/weights.py",
        "relative = self.raw(sets, rows, columns, shared)",
        "relative = self.raw(sets, rows, columns, shared).clamp(s.clip_min, s.clip_max)",
        GOLDEN,
    ),
    Mutation(
        "weights: strength as a factor of the whole weight",
        "marc_dist/objective/weights.py",
        ".sub_(1).mul_(s.strength).add_(1)",
        ".mul_(s.strength)",
        GOLDEN,
    ),
    Mutation(
        "weights: gamma with the wrong sign",
        "marc_dist/objective/weights.py",
        ".pow(-settings.gamma)",
        ".pow(settings.gamma)",
        GOLDEN,
    ),
    Mutation(
        "weights: gamma of the mean instead of each label pair",
        "marc_dist/objective/weights.py",
        "return both / some.square()",
        "return (pair_sums(a, b, 1 / inverse, self.known) / some.square()).clamp(min=1e-9).reciprocal()",
        GOLDEN,
    ),
    Mutation(
        "weights: counts of the batch where others are given",
        "marc_dist/objective/weights.py",
        "sets.statistics.cooccurrence.clamp(min=1)",
        "sets.own.cooccurrence.clamp(min=1)",
        GOLDEN,
    ),
    Mutation(
        "temperatures: counts of the batch where others are given",
        "marc_dist/objective/temperatures.py",
        "counts = sets.statistics.counts\n",
        "counts = sets.own.counts\n",
        GOLDEN,
    ),
    Mutation(
        "class_balanced: counts of the batch where others are given",
        "marc_dist/objective/targets.py",
        "balance = 1 / sets.statistics.counts.clamp(min=1)",
        "balance = 1 / sets.own.counts.clamp(min=1)",
        GOLDEN,
    ),
    Mutation(
        "temperatures: the floor holds tau instead of T",
        "marc_dist/objective/temperatures.py",
        "    return t.clamp(min=s.t_min)",
        "    return t * (max(s.tau, s.t_min) / s.tau)",
        GOLDEN,
    ),
    Mutation(
        "temperatures: the floor is added",
        "marc_dist/objective/temperatures.py",
        "    return t.clamp(min=s.t_min)",
        "    return t + s.t_min",
        GOLDEN,
    ),
    Mutation(
        "temperatures: mean and maximum of the rarities swapped",
        "marc_dist/objective/temperatures.py",
        'if settings.rarity == "mean" or',
        'if settings.rarity == "max" or',
        GOLDEN,
    ),
    Mutation(
        "temperatures: rarity over all labels instead of the anchor's",
        "marc_dist/objective/temperatures.py",
        "sets.labels @ each / sets.sizes.clamp(min=1)",
        "sets.labels @ each / len(each)",
        GOLDEN,
    ),
    Mutation(
        "temperatures: alpha and beta swapped",
        "marc_dist/objective/temperatures.py",
        "change = (1 + s.beta * rho)[:, None] + s.alpha * o",
        "change = (1 + s.alpha * rho)[:, None] + s.beta * o",
        GOLDEN,
    ),
    Mutation(
        "temperatures: overlap and rarity multiplied instead of added",
        "marc_dist/objective/temperatures.py",
        "change = (1 + s.beta * rho)[:, None] + s.alpha * o",
        "change = (1 + s.beta * rho)[:, None] * (1 + s.alpha * o)",
        GOLDEN,
    ),
    Mutation(
        "temperatures: soften_sharpen sharpens by overlap",
        "marc_dist/objective/temperatures.py",
        "t = (1 + s.alpha * o) * (s.tau / (1 + s.beta * rho))[:, None]",
        "t = (s.tau * (1 + s.beta * rho))[:, None] / (1 + s.alpha * o)",
        GOLDEN,
    ),
    Mutation(
        "checks: labels other than 0 and 1 pass",
        "marc_dist/objective/checks.py",
        "if bool(wrong.any()):",
        "if False:",
        CHECKS,
    ),
    Mutation(
        "checks: vectors that were not normalised pass",
        "marc_dist/objective/checks.py",
        "        if bad:\n",
        "        if False:\n",
        CHECKS,
    ),
    Mutation(
        "modules: count of this rank",
        "marc_dist/losses.py",
        "total, count = comm.gather_vectors(share).sum(dim=0)",
        "total, count = share",
        MODULES,
    ),
    Mutation(
        "modules: world factor missing",
        "marc_dist/losses.py",
        "local = comm.world() * parts.sum",
        "local = parts.sum",
        MODULES,
    ),
    Mutation(
        "modules: gradient of the prototypes of this rank",
        "marc_dist/comm/__init__.py",
        "if len(shared):",
        "if len(shared) < 0:",
        MODULES,
    ),
    Mutation(
        "modules: the value of this rank is shown",
        "marc_dist/losses.py",
        "_SameValue.apply(local, (total / count).to(dtype))",
        "_SameValue.apply(local, local.detach())",
        MODULES,
    ),
    Mutation(
        "triplet: a sample is its own positive",
        "marc_dist/objective/triplet.py",
        "best.add(keys.masked_fill(~(rows & other), -torch.inf), start)",
        "best.add(keys.masked_fill(~rows, -torch.inf), start)",
        TRIPLET,
    ),
    Mutation(
        "recompute without replaying the draws",
        "marc_dist/training/step.py",
        "                torch.manual_seed(seed)\n                projection, again",
        "                projection, again",
        TRAINER,
    ),
    Mutation(
        "cross-batch memory in the order of ranks",
        "marc_dist/training/step.py",
        "(gathered.detach()[order], all_labels[order], all_ids[order])",
        "(gathered.detach(), all_labels, all_ids)",
        TRAINER,
    ),
    Mutation(
        "a skipped step fills the cross-batch memory",
        "marc_dist/training/step.py",
        "            self._undo(buffers)\n        value",
        "            self._undo(buffers)\n            self.memory.add(*rows)\n        value",
        TRAINER,
    ),
    Mutation(
        "a matrix of all pairs is kept for backward",
        "marc_dist/objective/streamed.py",
        "        ctx.work = work\n",
        "        work.everything = anchors @ candidates.T\n        ctx.work = work\n",
        IMPLEMENTATIONS,
    ),
    Mutation(
        "sums over all minus the anchor's own figure",
        "marc_dist/objective/targets.py",
        "self.sets.shared(rows, everything)) * self.others(rows)",
        "self.sets.shared(rows, everything)) * self.sets.multiplicity",
        LOSSES,
    ),
    Mutation(
        "cross-batch memory not in the checkpoint",
        "marc_dist/training/setup.py",
        'memory.load(self.payload["memory"])',
        "pass",
        TRAINER,
    ),
    Mutation(
        "a hole in a streamed shard is passed over",
        "marc_dist/data/stream.py",
        "for gap in range(done, place))",
        "for gap in range(0))",
        STREAM,
    ),
    Mutation(
        "a worker that is asked for an earlier step goes on where it was",
        "marc_dist/data/stream.py",
        "opened.epoch != epoch or opened.at > start:",
        "opened.at > start:",
        STREAM,
    ),
    Mutation(
        "a shard that is opened again gives its samples twice",
        "marc_dist/data/stream.py",
        "if place < done:",
        "if place < 0:",
        STREAM,
    ),
    Mutation(
        "a frozen head is standardised by validation pictures, too",
        "marc_dist/training/feature_loader.py",
        "_moments(self.features, self._order.rows)",
        "_moments(self.features, self._known)",
        FROZEN,
    ),
    Mutation(
        "all views of a sample are of one kept part",
        "marc_dist/training/feature_loader.py",
        "chosen[:, view % chosen.shape[1]]",
        "chosen[:, 0]",
        FROZEN,
    ),
    Mutation(
        "features of a frozen backbone in training mode",
        "marc_dist/retrieval/vectors/features.py",
        "self.encoder.backbone.eval()",
        "self.encoder.backbone.train()",
        FROZEN,
    ),
    Mutation(
        "dropped features do not make the others grow",
        "marc_dist/training/feature_loader.py",
        "features *= kept / np.float32(1 - share)",
        "features *= kept",
        FROZEN,
    ),
    Mutation(
        "a frozen run goes on with another backbone",
        "marc_dist/training/setup.py",
        "before != backbone_fingerprint(encoder)",
        "not before",
        FROZEN,
    ),
    Mutation(
        "the untrained encoder is searched by its random head",
        "marc_dist/retrieval/evaluate.py",
        'features = config.eval.features if what == "trained" else "backbone"',
        "features = config.eval.features",
        "tests/retrieval/test_evaluate.py",
    ),
)


def noticed(mutation: Mutation, copy: Path) -> bool:
    """Whether the tests fail with the bug in place; the copy is as before afterwards."""
    path = copy / mutation.path
    before = path.read_text()
    assert before.count(mutation.old) == 1, f"{mutation.name}: its text is not in {mutation.path} exactly once"
    path.write_text(before.replace(mutation.old, mutation.new))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutation.tests]
    try:
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=600, check=False)
    finally:
        path.write_text(before)
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    if run.returncode not in (0, 1) or (run.returncode == 1 and not failed):
        raise SystemExit(f"{mutation.name}: pytest did not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    print(f"{'noticed' if failed else 'MISSED '}  {mutation.name}")
    for line in failed:
        print(f"         {line.removeprefix('FAILED ').split(' - ')[0]}")
    return bool(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    args = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation.name]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="marc-mutations-") as folder:
        copy = Path(folder)
        for name in COPIED:
            one = ROOT / name
            if one.is_dir():
                shutil.copytree(one, copy / name, ignore=shutil.ignore_patterns("__pycache__", "out"))
            else:
                shutil.copy(one, copy / name)
        found = {mutation.name: noticed(mutation, copy) for mutation in chosen}
    print(f"{sum(found.values())} of {len(found)} noticed, {time.monotonic() - start:.0f} s")
    write("mutations", {"noticed": found})
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
