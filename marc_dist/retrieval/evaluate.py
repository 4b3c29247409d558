"""A run folder -> retrieval scores: embed, search, score, on all ranks; trained and untrained encoder side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marc_dist import comm
from marc_dist.config import Config, DataError, ModelConfig
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.plan import rank_part
from marc_dist.retrieval import results
from marc_dist.retrieval.embed import embed, rank_ids
from marc_dist.retrieval.embedding_map import embedding_map, map_samples
from marc_dist.retrieval.index import Float32, Int, PartIndex, full_ranking, top_k
from marc_dist.retrieval.protocols import Protocol, Side, choose
from marc_dist.retrieval.scoring import TOP, Searched, gathered, scorer
from marc_dist.training.device import resolve_device
from marc_dist.training.export import load_encoder
from marc_dist.training.model import Encoder, build_encoder

FULL_LIMIT = 20_000
"""The index finds the first answers in any archive; up to this size an exhaustive sort ranks the rest as well."""
BLOCK = 64
KNOWN = ("backbone", "head_hidden", "head_dim")
"""What encoder.json tells of ``model``, for an encoder that lies alone."""


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
    known = tuple(info["classes"])
    dataset = open_dataset(config.eval.queries_dir or config.data.dir)
    other = config.eval.archive_dir and open_dataset(config.eval.archive_dir)
    if config.eval.protocol != "transfer":
        _same_classes(folder, known, dataset)
    protocol = choose(dataset, config.eval, archive=other or None, known=known)
    found, maps = {}, {}
    found["trained"], maps["trained"] = search(trained, protocol, config, info["image_size"], "trained", tell)
    if config.eval.baseline:
        alone = not (folder / "config.yaml").is_file()
        model = ModelConfig(**{key: info[key] for key in KNOWN}) if alone else config.model
        untrained = build_encoder(model, int(info["seed"]), info["image_size"])
        untrained.to(next(trained.parameters()).dtype)
        info = {**info, "untrained_weights": _origin(model, int(info["seed"]))}
        found["untrained"], maps["untrained"] = search(
            untrained, protocol, config, info["image_size"], "untrained", tell
        )
    summary = results.summarise(config, protocol, info, found)
    if comm.rank() == 0:
        points = {name: embedding_map(rows) for name, rows in maps.items()}
        results.write(folder / "eval", summary, protocol, found, points)
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
    encoder: Encoder, protocol: Protocol, config: Config, image_size: int, what: str, say: Callable[[str], None]
) -> tuple[Searched, Float32]:
    """Embed, rank and score with one encoder; and the features of the map's images. A collective."""
    device = resolve_device(config.train.device)
    gpu = torch.cuda.current_device() if device.type == "cuda" else None

    def vectors(side: Side, ids: Int) -> tuple[Float32, Int]:
        part = embed(encoder, side.dataset, ids, config, image_size=image_size, device=device, what=what, say=say)
        return part, rank_ids(ids, config.eval.batch)

    if protocol.one_dataset:
        asked = answering = vectors(protocol.archive, np.union1d(protocol.queries.ids, protocol.archive.ids))
    else:
        asked = vectors(protocol.queries, protocol.queries.ids)
        answering = vectors(protocol.archive, protocol.archive.ids)
    shown = [
        _gather(part[np.isin(mine, ids)], gpu)
        for (part, mine), ids in zip((asked, answering), map_samples(protocol), strict=True)
    ]
    queries = _gather(asked[0][np.isin(asked[1], protocol.queries.ids)], gpu)
    part, mine = answering
    ours = np.isin(mine, protocol.archive.ids)
    return rank_and_score(queries, part[ours], mine[ours], protocol, config, gpu), np.concatenate(shown)


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
    queries: Float32, part: Float32, mine: Int, protocol: Protocol, config: Config, gpu: int | None = None
) -> Searched:
    """Ranking and metrics from features: of all queries, and of this rank's part of the archive.

    Args:
        queries: (Q, d) unit vectors.
        part: (n, d) unit vectors.
        mine: (n,) their ids; over ranks in rank order ascending.
        protocol: who asks and who answers.
        config: ``eval``.
        gpu: search and exchange on this GPU.
    """
    complete = len(protocol.archive.ids) <= FULL_LIMIT
    depth = max(*config.eval.ks, TOP)
    cosines, listed = top_k(PartIndex(part, mine, gpu), queries, protocol.own_ids(), depth)
    archive = _gather(part, gpu) if complete else None
    scoring = scorer(protocol, config.eval, complete=complete)
    blocks = []
    starts = np.arange(0, len(queries), BLOCK, dtype=np.int64)
    for start in rank_part(starts, comm.rank(), comm.world()).tolist():
        block = slice(start, start + BLOCK)
        ranking = np.where(listed[block] < 0, -1, np.searchsorted(protocol.archive.ids, listed[block]))
        if archive is not None:
            own = protocol.self_positions(protocol.own_ids()[block])
            ranking = _continued(ranking, full_ranking(queries[block], archive, own))
        blocks.append(scoring.block(start, ranking, cosines[block]))
    return gathered(blocks)
