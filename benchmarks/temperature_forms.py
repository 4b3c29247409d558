"""Why a temperature that sharpens by label overlap fails, and which forms do not.

    python benchmarks/temperature_forms.py [--num 240] [--steps 300] [--features FILE.npz ...] [--quick]

Four looks at one loss (MACL, all pair weights 1, tau 0.1, alpha 0.5), from the label sets of the built-in sample alone:

1. All cosines equal, as an untrained network has them: how hard the loss pulls each pair together, by the Jaccard
   overlap of its label sets. Below zero it pushes the pair apart.
2. What the optimum asks for: where the softmax meets its targets, s = T (log q + const), here with the constant that
   gives an anchor's positives a mean cosine of 0.7.
3. No encoder: unit vectors moved freely until the loss no longer falls. Mean cosine by overlap; "order", the rank
   correlation of cosine with overlap among the positives of an anchor; "formula", the correlation of the cosines with
   those of look 2; retrieval of each picture among the others.
4. The same for growing alpha at two taus: what counts is alpha / tau.

``--features`` adds heads trained on kept features of a real archive: arrays ``train`` and ``test`` (n, D), ``ytrain``
and ``ytest`` (n, L).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import OUT, labels, verdict, write
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from marc_dist import metrics
from marc_dist.config import LossConfig
from marc_dist.data.dataset import open_dataset
from marc_dist.objective import objective
from marc_dist.retrieval.exact import exact_unit, full_ranking

ROOT = Path(__file__).resolve().parents[1]
FORMS: dict[str, dict[str, Any]] = {
    "one temperature": {"alpha": 0.0},
    "sharpen": {"temperature_form": "sharpen"},
    "sharpen, positives only": {"temperature_form": "sharpen", "temperature_scope": "positives_only"},
    "sharpen, row of positive": {"temperature_form": "sharpen", "temperature_scope": "per_positive_row"},
    "multiplicative": {"temperature_form": "multiplicative"},
    "soften": {"temperature_form": "soften"},
    "soften_sharpen, beta 0.5": {"temperature_form": "soften_sharpen", "beta": 0.5},
    "sharpen, beta 0.5 alone": {"temperature_form": "sharpen", "alpha": 0.0, "beta": 0.5},
}
BINS = (("0", 0.0, 0.0), ("to .34", 0.0, 0.34), ("to .67", 0.34, 0.67), ("below 1", 0.67, 0.999), ("1", 0.999, 1.0))
SCAN = ((0.1, 0.1), (0.1, 0.2), (0.1, 0.3), (0.2, 0.2), (0.2, 0.5), (0.2, 1.0))  # tau, alpha
MEAN = 0.7  # cosine of an anchor's positives in look 2
EQUAL = 0.9  # cosine of all pairs in an untrained network


def settings(options: dict[str, Any]) -> LossConfig:
    """MACL at tau 0.1, alpha 0.5, beta 0, weights 1, unless told otherwise."""
    return LossConfig(**{"tau": 0.1, "alpha": 0.5, "beta": 0.0, "strength": 0.0, "implementation": "dense", **options})


def jaccard(y: Tensor) -> Tensor:
    """(N, N) overlap of label sets."""
    rows = y.float()
    shared, sizes = rows @ rows.T, rows.sum(1)
    return shared / (sizes[:, None] + sizes - shared).clamp(min=1)


def by_overlap(values: Tensor, overlap: Tensor) -> dict[str, float | None]:
    """Mean over the pairs of each bin, self pairs left out; None for a bin without a pair."""
    others = ~torch.eye(len(overlap), dtype=torch.bool)
    found: dict[str, float | None] = {}
    others &= ~values.isnan()
    for name, low, high in BINS:
        chosen = others & (overlap <= high) & ((overlap > low) if high else (overlap == 0))
        found[name] = float(values[chosen].mean()) if chosen.any() else None
    return found


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count + 1) / 2)[place]


def order(cosine: Tensor, overlap: Tensor) -> float:
    """Mean over anchors of the rank correlation of cosine and overlap among the anchor's positives."""
    found = []
    for i in range(len(overlap)):
        positive = overlap[i] > 0
        positive[i] = False
        a, b = (ranks(x[i][positive].double().numpy()) for x in (cosine, overlap))
        if len(a) > 2 and a.std() > 0 and b.std() > 0:
            found.append(float(np.corrcoef(a, b)[0, 1]))
    return float(np.mean(found))


def equal_pulls(y: Tensor, options: dict[str, Any]) -> Tensor:
    """(N, N) pull of each pair when every cosine is ``EQUAL``: minus the slope of the loss in it, times N^2.

    The vectors are sqrt(s) e_0 + sqrt(1 - s) e_i, so the slope in an anchor's coordinate p is that in its cosine with
    candidate p, but for the factor sqrt(1 - s).
    """
    num = len(y)
    z = torch.cat([torch.full((num, 1), EQUAL**0.5), (1 - EQUAL) ** 0.5 * torch.eye(num)], dim=1).double()
    leaf = z.clone().requires_grad_()
    parts = objective(leaf, z, y, y, first=0, settings=settings(options))
    (slope,) = torch.autograd.grad(parts.sum / parts.count, leaf)
    return -slope[:, 1:] / (1 - EQUAL) ** 0.5 * num * num


def freely(y: Tensor, options: dict[str, Any], steps: int, dim: int = 64) -> tuple[Tensor, float, float]:
    """Unit vectors that minimise the loss without any encoder; the loss a quarter before the end, and at the end."""
    z = torch.randn(len(y), dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses = []
    for _ in range(steps):
        unit = functional.normalize(z, dim=1)
        parts = objective(unit, unit, y, y, first=0, settings=settings(options))
        loss = parts.sum / parts.count
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return functional.normalize(z.detach(), dim=1), losses[3 * steps // 4], losses[-1]


def scores(asks: Tensor, answers: Tensor, yasks: Tensor, yanswers: Tensor, own: bool) -> dict[str, float]:
    """Retrieval by cosine; ``own``: each row is its own archive entry, left out."""
    asked, sets = yasks.numpy(), metrics.distinct_sets(yanswers.numpy())
    place = np.arange(len(asked)) if own else np.full(len(asked), -1)
    ranking = full_ranking(exact_unit(asks.numpy()), exact_unit(answers.numpy()), place)
    found = metrics.score_queries(ranking, asked, sets, place, metrics.Scoring((10,)), complete=True, extra=True)
    each = metrics.mean_known(metrics.score_labels(ranking, asked, sets, place, complete=True))
    rare = metrics.label_thirds(yanswers.numpy().sum(axis=0)) == 0
    means = {name: float(found[name].mean()) for name in ("mAP", "nDCG@10", "jaccard@10")}
    return means | {"label AP": float(np.nanmean(each)), "rare": float(np.nanmean(each[rare]))}


def targets(y: Tensor) -> Tensor:
    """(N, N) q of the loss for weights of 1: sum over shared labels of 1 / number of the anchor's partners."""
    rows = y.double()
    return (rows / (rows.sum(0) - 1).clamp(min=1)) @ rows.T


def temperatures(y: Tensor, options: dict[str, Any]) -> Tensor | None:
    """(N, N) T, written out once more; None where a row has more than one softmax."""
    s, o, counts = settings(options), jaccard(y).double(), y.double().sum(0)
    r = ((y.double() @ (1 - counts / counts.max())) / y.double().sum(1).clamp(min=1))[:, None]
    if s.temperature_scope == "per_positive_row":
        return None
    forms = {
        "sharpen": s.tau / (1 + s.alpha * o + s.beta * r),
        "soften": s.tau * (1 + s.alpha * o + s.beta * r),
        "multiplicative": s.tau * (1 - s.alpha * o) * (1 - s.beta * r),
        "soften_sharpen": s.tau * (1 + s.alpha * o) / (1 + s.beta * r),
    }
    return forms[s.temperature_form]


def formula(cosine: Tensor, y: Tensor, temperature: Tensor | None) -> float | None:
    """Correlation of the cosines with T (log q + const) among an anchor's positives, mean over anchors.

    The constant is the anchor's mean of s / T - log q; nothing else is fitted.
    """
    if temperature is None:
        return None
    q, found = targets(y), []
    for i in range(len(y)):
        positive = q[i] > 0
        positive[i] = False
        s, t, log = cosine[i][positive].double(), temperature[i][positive], q[i][positive].log()
        expected = t * (log + (s / t - log).mean()) if len(s) else s
        if len(s) > 2 and float(expected.std()) > 1e-9 and float(s.std()) > 1e-9:
            found.append(float(torch.corrcoef(torch.stack([s, expected]))[0, 1]))
    return float(np.mean(found))


def asked(y: Tensor, temperature: Tensor) -> Tensor:
    """(N, N) cosines T (log q + const) of the positives, whose mean is ``MEAN`` for each anchor; NaN elsewhere."""
    positive = jaccard(y).gt(0).fill_diagonal_(False)
    t, log = torch.where(positive, temperature, 0.0), torch.where(positive, targets(y), 1.0).log()
    constant = (MEAN * positive.sum(1) - (t * log).sum(1)) / t.sum(1)
    return torch.where(positive, t * (log + constant[:, None]), torch.nan)


def head(archive: dict[str, Tensor], options: dict[str, Any], steps: int, seed: int = 0) -> dict[str, Any]:
    """A head of two layers on kept features, trained and scored."""
    torch.manual_seed(seed)
    mean, deviation = archive["train"].mean(0), archive["train"].std(0).clamp(min=1e-6)
    train, test = ((archive[name] - mean) / deviation for name in ("train", "test"))
    net = nn.Sequential(nn.Dropout(0.1), nn.Linear(train.shape[1], 512), nn.ReLU(), nn.Linear(512, 128))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    batch, left = min(256, len(train) // 2), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        left = left if len(left) >= batch else torch.randperm(len(train))
        rows, left = left[:batch], left[batch:]
        z = functional.normalize(net(train[rows].repeat(2, 1)), dim=1)
        y = archive["ytrain"][rows].repeat(2, 1)
        parts = objective(z, z, y, y, first=0, settings=settings({"implementation": "streamed", **options}))
        optimiser.zero_grad()
        (parts.sum / parts.count).backward()
        optimiser.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        asks, answers = functional.normalize(net(test), dim=1), functional.normalize(net(train), dim=1)
    overlap = jaccard(archive["ytest"])
    cosine = asks @ asks.T
    return {
        "cosine": by_overlap(cosine, overlap),
        "order": order(cosine, overlap),
        **scores(asks, answers, archive["ytest"], archive["ytrain"], own=False),
    }


def told(name: str, values: dict[str, float | None], more: str = "") -> None:
    """One line of a table."""
    cells = "".join("       -" if v is None else f" {v:7.2f}" for v in values.values())
    print(f"  {name:25s}{cells}{more}", flush=True)


def sample_labels(num: int) -> Tensor:
    """Labels of the built-in sample's first training tiles."""
    shards = OUT / "temperature-sample"
    if not (shards / "dataset.json").is_file():
        OUT.mkdir(exist_ok=True)
        words = ["--dataset", "sample", "--out", str(shards), "--force"]
        subprocess.run([sys.executable, "-m", "marc_dist.cli.shard", *words], check=True, cwd=ROOT, capture_output=True)
    dataset = open_dataset(shards)
    return torch.as_tensor(dataset.labels[dataset.rows("train")[:num]])


def free_figures(y: Tensor, options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Look 3 for one setting."""
    z, before, after = freely(y, options, steps)
    cosine, overlap = z @ z.T, jaccard(y)
    return {
        "cosine": by_overlap(cosine, overlap),
        "order": order(cosine, overlap),
        "formula": formula(cosine, y, temperatures(y, options)),
        "losses": [before, after],
        **scores(z, z, y, y, own=True),
    }


def more_of(found: dict[str, Any], *names: str) -> str:
    """Further figures of a line."""
    return "".join("       -" if found[name] is None else f" {found[name]:7.3f}" for name in names)


def main() -> int:
    """Look at every form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=240, help="pictures of the sample whose labels are used")
    parser.add_argument("--steps", type=int, default=300, help="steps of the free vectors")
    parser.add_argument("--features", type=Path, nargs="*", default=[], help="kept features of real archives, .npz")
    parser.add_argument("--quick", action="store_true", help="a few made-up rows, to see that it runs; no verdict")
    args = parser.parse_args()
    torch.set_num_threads(1)
    y = labels(60, 6) if args.quick else sample_labels(args.num)
    y = y[y.any(dim=1)]
    steps, overlap = (20 if args.quick else args.steps), jaccard(y)
    header = " " * 27 + "".join(f" {name:>7s}" for name, _, _ in BINS)
    results: dict[str, Any] = {"num": len(y), "steps": steps, "tau": 0.1, "alpha": 0.5}
    start = time.perf_counter()
    pulls, wanted, free = {}, {}, {}
    print(f"1. pull on a pair by Jaccard overlap, every cosine {EQUAL} (below 0: pushed apart)\n{header}")
    for name, options in FORMS.items():
        pulls[name] = by_overlap(equal_pulls(y, options), overlap)
        told(name, pulls[name])
    print(f"2. cosine that the optimum asks for, mean over positives {MEAN}\n{header}")
    for name, options in FORMS.items():
        temperature = temperatures(y, options)
        if temperature is not None:
            wanted[name] = by_overlap(asked(y, temperature), overlap)
            told(name, wanted[name])
    print(f"3. cosine of free vectors\n{header}   order formula nDCG@10  jac@10")
    for name, options in FORMS.items():
        free[name] = free_figures(y, options, steps)
        told(name, free[name]["cosine"], more_of(free[name], "order", "formula", "nDCG@10", "jaccard@10"))
    print(f"4. sharpen, by tau and alpha\n{header}   order formula nDCG@10  jac@10")
    scan = []
    for tau, alpha in SCAN:
        found = free_figures(y, {"tau": tau, "alpha": alpha}, steps)
        scan.append({"tau": tau, "alpha": alpha, **found})
        more = more_of(found, "order", "formula", "nDCG@10", "jaccard@10")
        told(f"tau {tau:g}, alpha {alpha:g}", found["cosine"], more)
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s")
    results |= {"seconds": seconds, "pulls": pulls, "asked": wanted, "free": free, "scan": scan}
    results["features"] = {path.stem: on_features(path, 20 if args.quick else 135, header) for path in args.features}
    write("temperature_forms", results)
    return 0 if args.quick or claims(pulls, wanted, free) else 1


def on_features(path: Path, steps: int, header: str) -> dict[str, Any]:
    """Heads on kept features, every form."""
    kept = {name: torch.as_tensor(value) for name, value in np.load(path).items()}
    print(f"head on {path.name}: cosine of test pictures\n{header}   order     mAP nDCG@10  jac@10    rare")
    results = {}
    for name, options in FORMS.items():
        if options.get("temperature_scope") != "per_positive_row":  # minutes for each head
            results[name] = head(kept, options, steps)
            more = more_of(results[name], "order", "mAP", "nDCG@10", "jaccard@10", "rare")
            told(name, results[name]["cosine"], more)
    return results


def claims(pulls: dict[str, Any], wanted: dict[str, Any], free: dict[str, Any]) -> bool:
    """What the documentation says."""
    equal, few = BINS[-1][0], BINS[1][0]
    gap = {name: values[equal] - values[few] for name, values in wanted.items()}
    best = free["one temperature"]["nDCG@10"]
    return all(
        [
            verdict("equal cosines: pull of sharpen on equal label sets", pulls["sharpen"][equal], 0, ""),
            verdict("the same of one temperature", pulls["one temperature"][equal], 0, "", at_least=True),
            verdict("the same of soften", pulls["soften"][equal], 0, "", at_least=True),
            verdict("asked cosine, equal sets minus little overlap: sharpen", gap["sharpen"], 0, ""),
            verdict("the same: soften", gap["soften"], 0.2, "", at_least=True),
            verdict("free vectors follow the formula: soften", free["soften"]["formula"], 0.9, "", at_least=True),
            verdict("nDCG@10 of free vectors: sharpen", free["sharpen"]["nDCG@10"], best - 0.2, ""),
            verdict("the same: soften", free["soften"]["nDCG@10"], best - 0.01, "", at_least=True),
            verdict(
                "the same: sharpen, a softmax for each positive",
                free["sharpen, row of positive"]["nDCG@10"],
                best - 0.01,
                "",
                at_least=True,
            ),
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
