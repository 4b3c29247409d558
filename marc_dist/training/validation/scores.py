"""Scores of the validation samples while a run trains: they ask, the samples that it trains on answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marc_dist import metrics
from marc_dist.config import Config, ConfigError, DataConfig

if TYPE_CHECKING:
    import torch

    from marc_dist.data.dataset import Dataset
    from marc_dist.encoder.model import Encoder

K = 10
METRICS = {
    "mAP": "mean average precision over queries",
    "label_mAP": "mean over labels of their average precision",
    "rare_mAP": "label_mAP of the rarest third of the labels",
    "medium_mAP": "label_mAP of the middle third of the labels",
    "common_mAP": "label_mAP of the commonest third of the labels",
    f"nDCG@{K}": f"mean normalised discounted gain of the first {K} answers",
    f"P@{K}": f"mean share of relevant pictures among the first {K}",
}
"""What a training reports of its validation samples; higher is better in all of them. Definitions: docs/metrics.md."""
BLOCK = 64  # queries ranked at a time, less where the archive is large
LEAST = 4
SCORES = 1 << 23
"""Queries times pictures of a block, about: 64 MB for each array of that size in float64."""
Ids = NDArray[np.int64]


def check_groups(dataset: Dataset, data: DataConfig, objectives: Sequence[str], place: str = "objective ") -> None:
    """Refuse an objective that no validation sample of this data could have a value for.

    Args:
        dataset: an opened shard folder.
        data: says which samples are trained on and which validate.
        objectives: metrics, see ``METRICS``; only those of a third of the labels can be refused.
        place: where the objective was given, before its name.

    Raises:
        ConfigError: names the objective and the share.
    """
    queries, archive = dataset.validation_rows(data), dataset.train_rows(data)
    counts = dataset.label_counts(archive)
    known, third = dataset.label_rows(queries).any(axis=0) & (counts > 0), metrics.label_thirds(counts)
    groups = {f"{name}_mAP": third == at for at, name in enumerate(metrics.THIRDS)}
    for name in objectives:
        if name in groups and not (known & groups[name]).any():
            raise ConfigError(
                f"{place}{name}: none of the {len(queries)} validation samples of {dataset.root} has such a label; "
                f"raise data.validation_share={data.validation_share:g}, or choose another metric"
            )


def validate(
    encoder: Encoder,
    dataset: Dataset,
    config: Config,
    tick: Callable[[], None],
    kept: Callable[[Ids], NDArray[np.float32]] | None = None,
) -> dict[str, float]:
    """Search the training samples with the validation samples and score it. A collective.

    Args:
        encoder: on its device, in evaluation mode; not changed.
        dataset: an opened shard folder.
        config: the run's settings; ``eval.features``, ``eval.batch`` and ``eval.relevance`` count here, too.
        tick: called after every batch of pictures, of vectors that are exchanged, and of queries.
        kept: ids -> features of the frozen backbone, in place of the pictures.

    Returns:
        ``METRICS`` by name, the same on every rank. Features that are not finite score 0 everywhere, and ``diverged``
        is 1 then. A third without any query is left out of the dictionary.

    Raises:
        DataError: a picture that cannot be read.
    """
    import torch

    from marc_dist import comm

    queries, archive = dataset.validation_rows(config.data), dataset.train_rows(config.data)
    ids = np.union1d(queries, archive)
    unit, device = _embed(encoder, dataset, ids, config, tick, kept)
    finite = comm.min_(torch.tensor([unit is not None], dtype=torch.int32, device=device))
    if unit is None or not finite.item():
        return {**dict.fromkeys(METRICS, 0.0), "diverged": 1.0}
    everywhere = comm.gather_to_host(torch.from_numpy(unit), device, tick).numpy()
    return dict(comm.broadcast_object(_scores(everywhere, ids, queries, archive, dataset, config, tick)))


def _embed(
    encoder: Encoder,
    dataset: Dataset,
    ids: Ids,
    config: Config,
    tick: Callable[[], None],
    kept: Callable[[Ids], NDArray[np.float32]] | None,
) -> tuple[NDArray[np.float32] | None, torch.device]:
    """Unit vectors of this rank's part of ``ids``, (n, D), None if one is not finite; and where the encoder is.

    Parts are whole batches of the one-process run, so vectors do not depend on the number of ranks. The ranks meet
    after every batch: none waits longer for another than a batch takes.
    """
    import torch

    from marc_dist import comm
    from marc_dist.retrieval.exact import exact_unit
    from marc_dist.retrieval.vectors.features import rank_ids

    parameter, what, batch = next(encoder.parameters()), config.eval.features, config.eval.batch
    parts = [np.empty((0, encoder.searched_width(what)), dtype=np.float32)]  # some ranks may have nothing to add
    finite = True
    batches = _inputs(dataset, rank_ids(ids, batch), config, kept)
    with torch.inference_mode():
        for _ in range(-(-len(ids) // (batch * comm.world()))):
            inputs = next(batches, None)
            if inputs is not None:
                inputs = inputs.to(parameter.device, parameter.dtype)
                features = inputs if kept is not None else encoder.features(inputs)
                vectors = encoder.searched(features, what).float().cpu().numpy()
                finite = finite and bool(np.isfinite(vectors).all())
                parts.append(exact_unit(vectors) if finite else vectors)
            comm.barrier()
            tick()
    batches.close()
    return np.concatenate(parts) if finite else None, parameter.device


def _inputs(
    dataset: Dataset, ids: Ids, config: Config, kept: Callable[[Ids], NDArray[np.float32]] | None
) -> Generator[torch.Tensor, None, None]:
    """Batches of pixels, or of features that are kept."""
    import torch

    from marc_dist.data.loader import iter_eval
    from marc_dist.encoder.published import resolve_scale

    batch = config.eval.batch
    if kept is None:
        size, workers, crc = config.data.image_size, config.data.num_workers, config.data.verify_crc
        for images, _ in iter_eval(dataset, ids, size, resolve_scale(config, dataset), batch, workers, crc):
            yield images
        return
    for start in range(0, len(ids), batch):
        yield torch.from_numpy(kept(ids[start : start + batch]))


def _scores(
    unit: NDArray[np.float32],
    ids: Ids,
    queries: Ids,
    archive: Ids,
    dataset: Dataset,
    config: Config,
    tick: Callable[[], None],
) -> dict[str, float]:
    """Figures from the vectors of all ``ids`` in order. A collective.

    Blocks of queries are dealt out to the ranks, which meet after each of them: a long validation is progress, block by
    block, on every rank. Put together in the order of the queries, figures have the same bits on any number of ranks.
    """
    from marc_dist import comm
    from marc_dist.retrieval.exact import full_ranking

    asks, answers = unit[np.searchsorted(ids, queries)], unit[np.searchsorted(ids, archive)]
    scoring = metrics.Scoring((K,), relevance=config.eval.relevance)
    sets = metrics.distinct_sets(dataset.label_rows(archive))
    size = max(LEAST, min(BLOCK, SCORES // len(archive)))
    starts = range(0, len(queries), size)
    mine: list[tuple[int, dict[str, NDArray[Any]], NDArray[Any]]] = []
    for turn in range(0, len(starts), comm.world()):
        for start in starts[turn : turn + comm.world()][comm.rank() :][:1]:
            block = slice(start, start + size)
            asked, own = dataset.label_rows(queries[block]), np.full(len(queries[block]), -1)
            ranking = full_ranking(asks[block], answers, own)
            found = metrics.score_queries(ranking, asked, sets, own, scoring, complete=True)
            label_ap = metrics.score_labels(ranking, asked, sets, own, complete=True)
            mine.append((start, {name: found[name] for name in METRICS if name in found}, label_ap))
        comm.barrier()
        tick()
    every = sorted((one for part in comm.gather_object(mine) for one in part), key=lambda one: one[0])
    per_label = metrics.mean_known(np.concatenate([label_ap for _, _, label_ap in every]))
    third = metrics.label_thirds(dataset.label_counts(archive))
    out = {name: float(np.concatenate([values[name] for _, values, _ in every]).mean()) for name in every[0][1]}
    groups = {"label": np.full(len(third), True)}
    groups |= {name: third == at for at, name in enumerate(metrics.THIRDS)}
    for name, chosen in groups.items():
        known = per_label[chosen & ~np.isnan(per_label)]
        if len(known):
            out[f"{name}_mAP"] = float(known.mean())
    return {name: out[name] for name in METRICS if name in out}
