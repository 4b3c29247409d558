"""What stands beside every loss: encoders that nobody trained, picture statistics, and a probe trained without a loss
of pairs. Each is scored as a cell is, and leaves the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist.augment.views import PixelScale
from marc_dist.config import Config, build, flatten
from marc_dist.data.dataset import Dataset
from marc_dist.data.loader import iter_eval
from marc_dist.encoder.device import resolve_device
from marc_dist.encoder.model import build_encoder
from marc_dist.encoder.published import resolve_scale
from marc_dist.retrieval import results
from marc_dist.retrieval.evaluate import open_protocol, rank_and_score
from marc_dist.retrieval.exact import exact_unit
from marc_dist.retrieval.index.spec import parse_spec
from marc_dist.retrieval.vectors.features import BackboneFeatures
from marc_dist.retrieval.vectors.store import Store
from marc_dist.study.plan import Evaluation, Plan, Task
from marc_dist.study.scores import eval_dir
from marc_dist.study.study_file import Floor

BINS = 16
"""Of the histogram of each band."""
WHITENED = 128
"""Principal components kept, as many as the default projection has."""
WEIGHT_DECAY = 1.0
"""Of the probe: inverse of scikit-learn's C."""
Rows = NDArray[np.float32]
Say = Callable[[str], None]


class _Vectors:
    """Unit vectors of every sample that an evaluation looks at; stands where a ``Store`` does."""

    def __init__(self, ids: NDArray[np.int64], rows: NDArray[np.floating]) -> None:
        self.ids, self.unit = ids, exact_unit(rows)
        self.dim = rows.shape[1]

    def rows(self, ids: NDArray[np.int64]) -> Rows:
        return self.unit[np.searchsorted(self.ids, ids)]


def score_floors(plan: Plan, task: Task, say: Say) -> None:
    """Score all floors of a data set and encoder by every evaluation.

    Args:
        plan: of the study.
        task: of kind floors.
        say: takes one line for people.
    """
    config = plan.config(task)
    vectors: dict[tuple[str, str], _Vectors] = {}
    for evaluation in plan.evaluations(task.dataset):
        for floor in plan.study.floors:
            one = plan.eval_config(config, evaluation)
            one = build(Config, flatten(one), {"eval.index": "flat"})
            _score(plan, task, floor, evaluation, one, vectors, say)


def _score(
    plan: Plan,
    task: Task,
    floor: Floor,
    evaluation: Evaluation,
    config: Config,
    vectors: dict[tuple[str, str], _Vectors],
    say: Say,
) -> None:
    own = plan.datasets[task.dataset]
    folder = plan.folder(task) / floor
    protocol = open_protocol(config, own.classes, folder, own.name)
    found = []
    for side, name in ((protocol.queries, "queries"), (protocol.archive, "archive")):
        key = floor, side.dataset.fingerprint
        if key not in vectors:
            say(f"{floor}: {side.dataset.title}, {name}")
            vectors[key] = _vectors(floor, side.dataset, own, config, say)
        found.append(vectors[key])
    asking, answering = (cast(Store, one) for one in found)
    searched, _ = rank_and_score(asking, answering, protocol, config, parse_spec("flat"), None, say)
    info = {"fingerprint": own.fingerprint, "backbone": config.model.backbone, "image_size": config.data.image_size}
    summary = {**results.summarise(config, protocol, info, {"trained": searched}), "features": floor}
    results.write(eval_dir(folder, evaluation), summary, protocol, {"trained": searched})


def _vectors(floor: Floor, dataset: Dataset, own: Dataset, config: Config, say: Say) -> _Vectors:
    """Vectors of a data set's samples; what is fitted is fitted on the training split of the cell's own data."""
    ids = np.arange(len(dataset), dtype=np.int64)
    if floor == "image_statistics":
        return _Vectors(ids, _standardised(_statistics(dataset, config), _statistics_of_training(own, config)))
    if floor == "random":
        config = build(Config, flatten(config), {"model.pretrained": False, "model.weights": None, "train.seed": 0})
    features = backbone_features(dataset, config, say)
    if floor in ("random", "pretrained"):
        return _Vectors(ids, features)
    fitted = features if dataset is own else backbone_features(own, config, say)
    rows = own.train_rows(config.data)
    if floor == "whitened":
        return _Vectors(ids, _whitened(features, fitted[rows]))
    return _Vectors(ids, _probed(features, fitted[rows], own.label_rows(rows)))


def backbone_features(dataset: Dataset, config: Config, say: Say) -> NDArray[np.float64]:
    """(n, F) of the backbone as it is before training, kept for all cells of the study.

    Args:
        dataset: an opened shard folder.
        config: of a cell, or of floors.
        say: takes one line for people.
    """
    kept = kept_features(dataset, config, say)
    out = np.zeros((len(dataset), kept.width))
    for split in dict.fromkeys(map(str, dataset.split)):
        store = kept.clean(split)
        assert store is not None
        rows = dataset.rows(split)
        out[rows] = np.asarray(store.rows(rows))
    return out


def mirror_features(dataset: Dataset, config: Config, rows: NDArray[np.int64], say: Say) -> NDArray[np.float64]:
    """(m, F) of the same backbone, of the mirror images of some pictures.

    Args:
        dataset: an opened shard folder.
        config: of a cell, or of floors.
        rows: m of its pictures, ascending.
        say: takes one line for people.
    """
    kept = kept_features(dataset, config, say)
    size, workers = config.data.image_size, config.data.num_workers
    pictures = iter_eval(dataset, rows, size, kept.scale, config.eval.batch, workers, config.data.verify_crc)
    return np.concatenate([kept.compute(images.flip(-1)) for images, _ in pictures]).astype(np.float64)


def kept_features(dataset: Dataset, config: Config, say: Say) -> BackboneFeatures:
    """The features of the backbone before training, which all cells share.

    Args:
        dataset: an opened shard folder.
        config: of a cell, or of floors.
        say: takes one line for people.
    """
    scale = resolve_scale(config, dataset)
    encoder = build_encoder(config.model, config.train.seed, config.data.image_size, in_chans=len(scale.mean))
    encoder.to(resolve_device(config.train.device))
    return BackboneFeatures(encoder.eval(), config, dataset, image_size=config.data.image_size, scale=scale, say=say)


def _statistics(dataset: Dataset, config: Config) -> NDArray[np.float64]:
    """(n, 3 * (2 + BINS)): mean, deviation and histogram of each band, pixels in 0..1."""
    bands = resolve_scale(config, dataset).bands
    num = 3 if bands is None else len(bands.names)
    scale = PixelScale((0.0,) * num, (1.0,) * num, "bilinear", bands)
    ids = np.arange(len(dataset), dtype=np.int64)
    parts = []
    size, workers = config.data.image_size, config.data.num_workers
    for images, _ in iter_eval(dataset, ids, size, scale, config.eval.batch, workers, config.data.verify_crc):
        flat = images.double().flatten(2)
        bins = (flat.clamp(0.0, 1.0) * BINS).long().clamp(max=BINS - 1)
        counts = torch.zeros(*flat.shape[:2], BINS, dtype=torch.float64)
        counts.scatter_add_(2, bins, torch.ones_like(flat))
        moments = torch.stack([flat.mean(dim=2), flat.std(dim=2)], dim=2)
        parts.append(torch.cat([moments, counts / flat.shape[2]], dim=2).flatten(1).numpy())
    return np.concatenate(parts)


def _statistics_of_training(own: Dataset, config: Config) -> NDArray[np.float64]:
    return _statistics(own, config)[own.train_rows(config.data)]


def _standardised(rows: NDArray[np.float64], fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column with mean 0 and deviation 1 over the training split; columns that never change stay 0."""
    deviation = fitted.std(axis=0)
    return np.asarray((rows - fitted.mean(axis=0)) / np.where(deviation > 1e-12, deviation, np.inf))


def _whitened(rows: NDArray[np.float64], fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The leading principal components of the training split, each divided by its deviation there."""
    from sklearn.decomposition import PCA

    num = min(WHITENED, fitted.shape[1], len(fitted) - 1)
    return np.asarray(PCA(num, whiten=True, svd_solver="full").fit(fitted).transform(rows))


def _probed(rows: NDArray[np.float64], fitted: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Probability of each label by logistic regression on standardised features; a constant where all are alike."""
    from sklearn.linear_model import LogisticRegression

    inputs, outputs = _standardised(fitted, fitted), _standardised(rows, fitted)
    out = np.empty((len(rows), labels.shape[1]))
    for at in range(labels.shape[1]):
        ones = labels[:, at]
        if ones.all() or not ones.any():
            out[:, at] = 1e-6 + float(ones.any())
            continue
        # gradients are sums over pictures: per picture, this is a weight decay of WEIGHT_DECAY / n
        probe = LogisticRegression(C=1.0 / WEIGHT_DECAY, max_iter=1000).fit(inputs, ones)
        out[:, at] = probe.predict_proba(outputs)[:, 1]
    return out
