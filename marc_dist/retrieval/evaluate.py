"""A run folder -> retrieval scores: embed, search, score, on all ranks; trained and untrained encoder side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marc_dist import comm
from marc_dist.config import Config, DataError, ModelConfig
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.plan import rank_part
from marc_dist.retrieval import metrics, results
from marc_dist.retrieval.embed import embed, rank_ids
from marc_dist.retrieval.index import Float32, Int, PartIndex, full_ranking, top_k
from marc_dist.retrieval.protocols import Protocol, choose
from marc_dist.training.device import resolve_device
from marc_dist.training.export import load_encoder
from marc_dist.training.model import Encoder, build_encoder

FULL_LIMIT = 20_000
"""The index finds the first answers in any archive; up to this size an exhaustive sort ranks the rest as well."""
BLOCK = 64
KNOWN = ("backbone", "head_hidden", "head_dim")
"""What encoder.json tells of ``model``, for an encoder that lies alone."""


@dataclass(frozen=True)
class Searched:
    """What one encoder found: metrics (Q,), label AP (Q, L) with NaN, first answers (Q, TOP) as sample ids or -1."""

    scores: dict[str, metrics.Float]
    label_ap: metrics.Float
    top: Int


def evaluate_rank(config: Config, folder: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
    """One rank of an evaluation: join the world that the environment describes, evaluate, leave.

    Returns:
        The summary, and whether this is the rank that speaks.
    """
    here = comm.join(resolve_device(config.train.device).type, folder=folder / "logs")
    summary = evaluate(config, folder, say)
    comm.leave()
    return summary, here.rank == 0


def evaluate(config: Config, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Score the encoder of ``folder`` and write ``folder/eval``. A collective; rank 0 writes.

    Args:
        config: ``eval``, ``data.dir``, ``train.device``, and ``model`` for the untrained encoder.
        folder: holds ``encoder.safetensors`` and ``encoder.json``.
        say: takes one line for people; called on rank 0 only.

    Returns:
        What ``metrics.json`` holds, on every rank.

    Raises:
        DataError: missing or damaged encoder, other classes than the dataset, unreadable images, features not finite.
    """
    tell = say if comm.rank() == 0 else _silence
    trained, info = load_encoder(folder)
    dataset = open_dataset(config.data.dir)
    _same_classes(folder, tuple(info["classes"]), dataset)
    protocol = choose(dataset, config.eval)
    found = {"trained": search(trained, dataset, protocol, config, info["image_size"], "trained", tell)}
    if config.eval.baseline:
        alone = not (folder / "config.yaml").is_file()
        model = ModelConfig(**{key: info[key] for key in KNOWN}) if alone else config.model
        untrained = build_encoder(model, int(info["seed"]), info["image_size"])
        untrained.to(next(trained.parameters()).dtype)
        info = {**info, "untrained_weights": _origin(model, int(info["seed"]))}
        found["untrained"] = search(untrained, dataset, protocol, config, info["image_size"], "untrained", tell)
    tables = {name: (one.scores, one.label_ap, one.top) for name, one in found.items()}
    summary = results.summarise(config, dataset, protocol, info, tables)
    if comm.rank() == 0:
        results.write(folder / "eval", summary, dataset, protocol, tables)
    comm.barrier()
    return summary


def _origin(model: ModelConfig, seed: int) -> str:
    """Where the weights of the untrained encoder come from."""
    if model.weights is not None:
        return f"from {model.weights}"
    return "timm's published ones" if model.pretrained else f"random, seed {seed}"


def _silence(_: str) -> None:
    """Only rank 0 speaks."""


def _same_classes(folder: Path, classes: tuple[str, ...], dataset: Dataset) -> None:
    if classes != dataset.classes:
        ours, theirs = set(classes) - set(dataset.classes), set(dataset.classes) - set(classes)
        only = ", ".join(sorted(ours)[:3] or sorted(theirs)[:3]) or "the order of the classes"
        raise DataError(
            f"{folder}: the encoder was trained on {len(classes)} classes, {dataset.root} has {len(dataset.classes)} "
            f"(differing: {only}); give the data it was trained on with --data DIR"
        )


def search(
    encoder: Encoder,
    dataset: Dataset,
    protocol: Protocol,
    config: Config,
    image_size: int,
    what: str,
    say: Callable[[str], None],
) -> Searched:
    """Embed, rank and score with one encoder. A collective; the result is complete on every rank."""
    device = resolve_device(config.train.device)
    ids = np.union1d(protocol.queries, protocol.archive)
    part = embed(encoder, dataset, ids, config, image_size=image_size, device=device, what=what, say=say)
    mine = rank_ids(ids, config.eval.batch)
    gpu = torch.cuda.current_device() if device.type == "cuda" else None
    return rank_and_score(part, mine, dataset, protocol, config, gpu)


def _gather(rows: Float32, gpu: int | None) -> Float32:
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    gathered = comm.gather_rows_plain(tensor if gpu is None else tensor.to(f"cuda:{gpu}"))
    return np.asarray(gathered.cpu().numpy(), dtype=np.float32)


def _continued(head: Int, whole: Int) -> Int:
    """The whole ranking, after a check that it begins with the lists that the index found."""
    depth = min(head.shape[1], whole.shape[1])
    if not np.array_equal(head[:, :depth], whole[:, :depth]):
        raise RuntimeError("the index and the exhaustive sort order an archive differently; please report this")
    return whole


def rank_and_score(
    part: Float32, mine: Int, dataset: Dataset, protocol: Protocol, config: Config, gpu: int | None = None
) -> Searched:
    """Ranking and metrics from features that lie in parts on the ranks.

    Args:
        part: (n, d) unit vectors of this rank's samples.
        mine: (n,) their ids; over ranks in rank order ascending, and the union of queries and archive.
        dataset: for the labels.
        protocol: who asks and who answers.
        config: ``eval``.
        gpu: search and exchange on this GPU.
    """
    queries = _gather(part[np.isin(mine, protocol.queries)], gpu)
    ours = np.isin(mine, protocol.archive)
    complete = len(protocol.archive) <= FULL_LIMIT
    depth = max(*config.eval.ks, results.TOP)
    _, listed = top_k(PartIndex(part[ours], mine[ours], gpu), queries, protocol.queries, depth)
    archive = _gather(part[ours], gpu) if complete else None
    scoring = metrics.Scoring(config.eval.ks, config.eval.gain, config.eval.relevance)
    labels = metrics.label_sets(dataset.labels[protocol.archive])  # once, for all blocks
    scored = []
    starts = np.arange(0, len(queries), BLOCK, dtype=np.int64)
    for start in rank_part(starts, comm.rank(), comm.world()).tolist():
        block = slice(start, start + BLOCK)
        asked = dataset.labels[protocol.queries[block]]
        own = protocol.self_positions(protocol.queries[block])
        ranking = np.where(listed[block] < 0, -1, np.searchsorted(protocol.archive, listed[block]))
        if archive is not None:
            ranking = _continued(ranking, full_ranking(queries[block], archive, own))
        scored.append(
            (
                metrics.score_queries(ranking, asked, labels, own, scoring, complete=complete),
                metrics.score_labels(ranking, asked, labels, own, complete=complete),
                listed[block, : results.TOP],
            )
        )
    everywhere = [block for rank in comm.gather_object(scored) for block in rank]
    return Searched(
        {name: np.concatenate([block[0][name] for block in everywhere]) for name in everywhere[0][0]},
        np.concatenate([block[1] for block in everywhere]),
        np.concatenate([block[2] for block in everywhere]),
    )
