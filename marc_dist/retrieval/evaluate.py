"""A run folder -> retrieval scores: embed, search, score, on all ranks; trained and untrained encoder side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from marc_dist import comm
from marc_dist.augment.views import PixelScale
from marc_dist.config import Config, ConfigError, DataError, ModelConfig
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.plan import rank_part
from marc_dist.encoder.band_scale import refuse_other_bands
from marc_dist.encoder.device import resolve_device
from marc_dist.encoder.export import load_encoder, pixel_scale
from marc_dist.encoder.model import Encoder, build_encoder
from marc_dist.metrics.metric_help import SEARCHED
from marc_dist.progress_bar import LINE_S, shown_time
from marc_dist.retrieval import results
from marc_dist.retrieval.embedding_map import embedding_map, map_samples
from marc_dist.retrieval.exact import Float32, Int, Rows, Signs, full_ranking, queries_at_once
from marc_dist.retrieval.index.kept import kept_part
from marc_dist.retrieval.index.parts import BinaryPart, FactoryPart, FlatPart, check_spec
from marc_dist.retrieval.index.spec import IndexSpec, parse_spec
from marc_dist.retrieval.protocols import Protocol, Side, choose
from marc_dist.retrieval.scoring import TOP, Searched, gathered, scorer
from marc_dist.retrieval.scoring import Part as ScoringPart
from marc_dist.retrieval.search import Part, make_part, recall, top_k
from marc_dist.retrieval.vectors.embed import Embedder
from marc_dist.retrieval.vectors.store import Store, splits_of
from marc_dist.run.evaluations import evaluation_folder

BLOCK = 64
"""Queries that a rank scores between two meetings; of a large archive, fewer are ranked at a time."""
LIMIT_S = 7200.0
"""Ranks wait so long for rank 0, which may learn an index or read a large store alone."""
KNOWN = ("backbone", "head_hidden", "head_dim")
"""What encoder.json tells of ``model``, for an encoder that lies alone."""


def evaluate_rank(config: Config, folder: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
    """One rank of an evaluation: join the world that the environment describes, evaluate, leave.

    Args:
        config: see ``evaluate``.
        folder: of the encoder; without MASTER_ADDR the ranks of an srun step meet in ``logs`` in it.
        say: takes one line for people; called on rank 0 only.

    Returns:
        The summary, and whether this is the rank that speaks.
    """
    here = comm.join(resolve_device(config.train.device).type, timeout_s=LIMIT_S, folder=folder / "logs")
    summary = evaluate(config, folder, say)
    comm.leave()
    return summary, here.rank == 0


def evaluate(config: Config, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Score the encoder of ``folder`` and keep the evaluation in it. A collective; rank 0 writes.

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
    protocol = open_protocol(config, tuple(info["classes"]), folder, str(info.get("dataset", "")))
    spec = parse_spec(config.eval.index)
    check_spec(spec, trained.searched_width(config.eval.features))
    if config.eval.baseline:
        check_spec(spec, trained.num_features)
    tell(protocol.sentence)
    size, scale = info["image_size"], pixel_scale(info)
    refuse_other_bands(config.data.bands, scale, str(folder))
    tell(searched_sentence(config))
    find = partial(
        search, protocol=protocol, spec=spec, config=config, image_size=size, scale=scale, folder=folder, say=tell
    )
    encoders = {"trained": trained}
    if config.eval.baseline:
        alone = not (folder / "config.yaml").is_file()
        model = ModelConfig(pretrained=False, **{key: info[key] for key in KNOWN}) if alone else config.model
        try:
            encoders["untrained"] = build_encoder(
                model, int(info["seed"]), info["image_size"], in_chans=len(scale.mean)
            )
        except ConfigError as error:  # of a run that was made elsewhere
            raise ConfigError(f"{error}; or score the trained encoder alone: eval.baseline=false") from None
        encoders["untrained"].to(next(trained.parameters()).dtype)
        info = {**info, "untrained_weights": encoders["untrained"].origin}
    answers = {name: find(encoder, what=name) for name, encoder in encoders.items()}
    found = {name: one.searched for name, one in answers.items()}
    recalls = {name: one.recall for name, one in answers.items() if one.recall is not None}
    summary = results.summarise(config, protocol, info, found, index_recall=recalls or None)
    if comm.rank() == 0:
        points = {name: embedding_map(one.shown) for name, one in answers.items()}
        place = evaluation_folder(folder, config.eval.protocol, config.eval.name)
        told = results.replaced(place, summary)
        results.write(place, summary, protocol, found, points)
        if told:
            tell(told)
    comm.barrier()
    return summary


def open_protocol(config: Config, known: tuple[str, ...], folder: Path, known_name: str) -> Protocol:
    """The data sets that ``data.dir``, ``eval.queries_dir`` and ``eval.archive_dir`` name, and who asks whom.

    Args:
        config: ``data`` and ``eval``.
        known: classes of the encoder's training data.
        folder: of the encoder, for messages.
        known_name: name of that data.

    Raises:
        DataError: no such data, other classes than the encoder's (unless the protocol is transfer), see ``choose``.
    """
    asking = open_dataset(config.eval.queries_dir or config.data.dir)
    answering = None if config.eval.archive_dir is None else open_dataset(config.eval.archive_dir)
    if config.eval.protocol != "transfer":
        _same_classes(folder, known, asking)
    return choose(asking, config.eval, archive=answering, known=known, known_name=known_name)


def searched_sentence(config: Config) -> str:
    """One line on which vectors are searched."""
    told = f"searched: {SEARCHED[config.eval.features]} (eval.features={config.eval.features})"
    return told + (f"; of the untrained encoder {SEARCHED['backbone']}" if config.eval.baseline else "")


def _silence(_: str) -> None:
    """Only rank 0 speaks."""


def _same_classes(folder: Path, classes: tuple[str, ...], dataset: Dataset) -> None:
    if classes != dataset.classes:
        ours, theirs = set(classes) - set(dataset.classes), set(dataset.classes) - set(classes)
        only = ", ".join(sorted(ours)[:3] or sorted(theirs)[:3]) or "the order of the classes"
        raise DataError(
            f"{folder}: the encoder was trained on {len(classes)} classes, {dataset.root} has {len(dataset.classes)} "
            f"(differing: {only}); give the data it was trained on with --data DIR, "
            "or search over the labels that both know with --protocol transfer"
        )


class Answered(NamedTuple):
    """What one encoder found, the vectors of the map's images, and the recall of an index that is not flat."""

    searched: Searched
    shown: Float32
    recall: float | None


def search(
    encoder: Encoder,
    *,
    protocol: Protocol,
    spec: IndexSpec,
    config: Config,
    image_size: int,
    scale: PixelScale,
    folder: Path,
    what: str,
    say: Callable[[str], None],
) -> Answered:
    """Embed, rank and score with one encoder. A collective; the result is complete on every rank.

    Args:
        encoder: on any device; it is moved to that of the run.
        protocol: who asks and who answers.
        spec: the index.
        config: ``eval``, ``train.device``, and ``model``: features of a frozen backbone are kept for other runs.
        image_size: side of the square that the encoder takes, pixels.
        scale: how the encoder wants pictures resized and normalised.
        folder: vectors are kept in ``embeddings`` in it.
        what: ``trained`` searches the vectors of ``eval.features``, ``untrained`` the backbone's features.
        say: takes one line for people.
    """
    device = resolve_device(config.train.device)
    # the untrained encoder is what training started from; its head is random, so its backbone is what it has to show
    features = config.eval.features if what == "trained" else "backbone"
    keep = True if config.model.head_only else None
    embedder = Embedder(
        encoder,
        config,
        image_size=image_size,
        scale=scale,
        device=device,
        what=what,
        say=say,
        features=features,
        keep=keep,
    )

    def store(side: Side, ids: Int) -> Store:
        dataset = side.dataset
        place = folder / "embeddings" / f"{what}-{features}-{dataset.fingerprint[:12]}"
        return embedder.store(place, dataset, splits_of(dataset, ids), {"title": dataset.title})

    if protocol.one_dataset:
        both = store(protocol.archive, np.union1d(protocol.queries.ids, protocol.archive.ids))
        stores = both, both
    else:
        stores = store(protocol.queries, protocol.queries.ids), store(protocol.archive, protocol.archive.ids)
    gpu = torch.cuda.current_device() if device.type == "cuda" else None
    searched, found = rank_and_score(*stores, protocol, config, spec, gpu, say)
    shown = [np.asarray(one.rows(ids)) for one, ids in zip(stores, map_samples(protocol), strict=True)]
    return Answered(searched, np.concatenate(shown), found)


def rank_and_score(
    asking: Store,
    answering: Store,
    protocol: Protocol,
    config: Config,
    spec: IndexSpec,
    gpu: int | None,
    say: Callable[[str], None],
) -> tuple[Searched, float | None]:
    """Ranking and metrics, and the recall of an index that is not flat. A collective.

    Args:
        asking: vectors of the queries.
        answering: vectors of the archive.
        protocol: who asks and who answers.
        config: ``eval``.
        spec: the index.
        gpu: search and exchange on this GPU.
        say: takes one line for people.
    """
    device = None if gpu is None else torch.device("cuda", gpu)
    queries = np.asarray(asking.rows(protocol.queries.ids))
    archive_ids, own_ids = protocol.archive.ids, protocol.own_ids()
    depth = min(max(*config.eval.ks, TOP), len(archive_ids))
    mine = rank_part(archive_ids, comm.rank(), comm.world())
    if spec.kind == "factory":
        index: Part = kept_part(spec, answering, archive_ids, say)
    else:
        index = make_part(spec, answering.rows, archive_ids, mine, gpu, float16=config.eval.float16, say=say)
    scores, listed = top_k(index, queries, own_ids, depth, device=device)
    found = None
    if spec.kind != "flat":
        k = min(*config.eval.ks, depth)
        found = recall(answering.rows(mine), mine, queries, own_ids, listed, k, device)
        say(f"index: finds {100 * found:.1f} % of the exact first {k}")
    whole = None if isinstance(index, FactoryPart) else _Whole(index, answering.rows(archive_ids))
    scoring = scorer(protocol, config.eval, complete=whole is not None)
    cosines = None if spec.kind == "binary" else scores

    def parts(start: int) -> Iterator[ScoringPart]:
        end = min(start + BLOCK, len(queries))
        size = BLOCK if whole is None else queries_at_once(len(archive_ids), BLOCK)
        for at in range(start, end, size):
            rows = slice(at, min(at + size, end))
            ranking = np.where(listed[rows] < 0, -1, np.searchsorted(archive_ids, listed[rows]))
            if whole is not None:
                ranking = whole.continued(ranking, queries[rows], protocol.self_positions(own_ids[rows]))
            yield ranking, None if cosines is None else cosines[rows]
            del ranking

    blocks = []
    starts, tell = range(0, len(queries), BLOCK), _Progress(len(queries), say)
    for turn in range(0, len(starts), comm.world()):
        for start in starts[turn + comm.rank() : turn + comm.world()][:1]:
            blocks.append(scoring.block_in_parts(start, parts(start)))
        comm.barrier()  # block by block: none waits longer for another than a block takes
        tell(min((turn + comm.world()) * BLOCK, len(queries)))
    return gathered(blocks), found


class _Whole:
    """Whole rankings of an archive, by the scores of an exact index.

    Args:
        index: flat, or of binary codes.
        archive: (N, d) unit vectors in ascending order of id; may be mapped.
    """

    def __init__(self, index: FlatPart | BinaryPart, archive: Rows) -> None:
        self._space = index.space
        self._archive: Rows | Signs = archive
        if isinstance(index, BinaryPart):
            self._archive = Signs(index.coder.codes(archive), index.coder.bits)

    def continued(self, head: Int, queries: Float32, own: Int) -> Int:
        """(B, N) the whole ranking of each query, after a check that it begins with the lists that the index found."""
        whole = full_ranking(self._space(queries), self._archive, own)
        depth = min(head.shape[1], whole.shape[1])
        if not np.array_equal(head[:, :depth], whole[:, :depth]):
            raise RuntimeError("the index and the exhaustive sort order an archive differently; please report this")
        return whole


class _Progress:
    """Says from time to time how many queries are ranked and scored.

    Args:
        total: queries.
        say: takes one line for people.
    """

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self._total, self._say = total, say
        self._start = self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < LINE_S or done == self._total:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-3)
        left = shown_time((self._total - done) / rate)
        share = f"{done:,} of {self._total:,} queries ({done / self._total:.0%})"
        self._say(f"ranking: {share}, {rate:,.1f} queries/s, {left} left")
