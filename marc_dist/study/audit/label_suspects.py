"""Labels that look wrong: a probe that was not trained on a picture contradicts what the picture is said to show.

Each label has a logistic regression on the leading principal components of the features and on the picture's *other*
labels: where two labels nearly always go together, one without the other is more doubtful, and less where they often
part. Every picture is judged by a probe of the folds that it is not in. The rule is confident learning's (Northcutt,
Jiang, Chuang, JAIR 2021), for each label by itself: a label is doubtful when the probe is as sure of the opposite as it
is, on average, of the pictures that are labelled so, and holds it more likely than not. ``cleanlab``'s
``find_label_issues`` finds the same labels.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
COMPONENTS = 64
FOLDS = 5
LEAST = 2 * FOLDS
"""Pictures with a label, and without it, that a probe needs: two a fold."""
DECAY = 0.1
"""scikit-learn's C of the probe: inverse of the weight decay."""


class Doubt(NamedTuple):
    """One label of one picture.

    Attributes:
        row: of the picture.
        label: number of the label.
        missing: True = the label should be there, False = it should not.
        score: chance that the given label is wrong, by the probe, 0 to 1.
    """

    row: int
    label: int
    missing: bool
    score: float


def probe_probabilities(features: NDArray[np.floating], labels: Bool, *, seed: int = 0) -> Float:
    """(n, L) probability of each label, each by a probe that has not seen the picture; NaN for labels with too few.

    Args:
        features: (n, F).
        labels: (n, L).
        seed: of the folds.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    num, num_labels = labels.shape
    wide = np.asarray(features, dtype=np.float64)
    size = min(COMPONENTS, wide.shape[1], num - 1)
    seen = PCA(size, whiten=True, random_state=seed).fit_transform(wide) if size > 0 else np.zeros((num, 0))
    others = labels.astype(np.float64) - labels.mean(axis=0)
    out = np.full((num, num_labels), np.nan)
    for at in range(num_labels):
        ones = labels[:, at]
        if min(int(ones.sum()), int((~ones).sum())) < LEAST:
            continue
        inputs = np.concatenate([seen, np.delete(others, at, axis=1)], axis=1)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a probability a little off is as good here
            probe = LogisticRegression(C=DECAY, max_iter=200)
            out[:, at] = cross_val_predict(probe, inputs, ones, cv=folds, method="predict_proba")[:, 1]
    return out


def doubtful(labels: Bool, probabilities: Float) -> list[Doubt]:
    """Labels that the probes contradict with confidence, the most doubtful first.

    Args:
        labels: (n, L) as given.
        probabilities: (n, L) of ``probe_probabilities``.
    """
    found: list[Doubt] = []
    for at in range(labels.shape[1]):
        p, given = probabilities[:, at], labels[:, at]
        if np.isnan(p).any():
            continue
        sure_there, sure_away = p[given].mean(), (1.0 - p[~given]).mean()
        there, away = (p >= sure_there) & (p > 0.5), (1.0 - p >= sure_away) & (p < 0.5)
        found += [Doubt(row, at, True, float(p[row])) for row in np.flatnonzero(there & ~given).tolist()]
        found += [Doubt(row, at, False, float(1.0 - p[row])) for row in np.flatnonzero(away & given).tolist()]
    return sorted(found, key=lambda doubt: (-doubt.score, doubt.row, doubt.label))


def neighbour_share(features: NDArray[np.floating], labels: Bool, rows: list[int], k: int = 10) -> Float:
    """(m, L) share of the k nearest pictures that carry each label, for people to see what a doubt rests on.

    Args:
        features: (n, F); lose their mean.
        labels: (n, L).
        rows: m pictures.
        k: neighbours of each.
    """
    from marc_dist.api.search import search  # torch

    if not rows:
        return np.zeros((0, labels.shape[1]))
    centred = features - np.asarray(features, dtype=np.float64).mean(axis=0)
    num = min(k, len(labels) - 1)
    found = search(centred[rows], centred, num, self_positions=np.array(rows, dtype=np.int64))
    return np.asarray(labels[found.positions].mean(axis=1), dtype=np.float64)
