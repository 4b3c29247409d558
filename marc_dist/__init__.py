"""Multi-label remote-sensing retrieval, exact at any scale: losses, metrics, data sets, encoders and search for Python.

    import marc_dist
    scores = marc_dist.retrieval_metrics(query_vectors, query_labels, archive_vectors, archive_labels)

See ``docs/python.md``. Importing this package imports nothing heavy: a name is fetched when somebody asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marc_dist.api.dataset import Sample, ShardDataset, open_dataset
    from marc_dist.api.encoder import ImageEncoder, embed, load_encoder
    from marc_dist.api.scores import RetrievalScores, retrieval_metrics, score_ranking
    from marc_dist.api.search import Neighbours, search
    from marc_dist.config.errors import ConfigError, DataError
    from marc_dist.losses import (
        JaccardLoss,
        MaclLoss,
        MscLoss,
        MulSupConLoss,
        MultiSupConLoss,
        NTXentLoss,
        SimilarityDissimilarityLoss,
        SupConAllLoss,
        SupConAnyLoss,
        SupConSingleLoss,
        TripletLoss,
    )

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "ImageEncoder",
    "JaccardLoss",
    "MaclLoss",
    "MscLoss",
    "MulSupConLoss",
    "MultiSupConLoss",
    "NTXentLoss",
    "Neighbours",
    "RetrievalScores",
    "Sample",
    "ShardDataset",
    "SimilarityDissimilarityLoss",
    "SupConAllLoss",
    "SupConAnyLoss",
    "SupConSingleLoss",
    "TripletLoss",
    "embed",
    "load_encoder",
    "open_dataset",
    "retrieval_metrics",
    "score_ranking",
    "search",
]

_HOMES = {
    "api.dataset": ("Sample", "ShardDataset", "open_dataset"),
    "api.encoder": ("ImageEncoder", "embed", "load_encoder"),
    "api.scores": ("RetrievalScores", "retrieval_metrics", "score_ranking"),
    "api.search": ("Neighbours", "search"),
    "config.errors": ("ConfigError", "DataError"),
    "losses": (
        "JaccardLoss",
        "MaclLoss",
        "MscLoss",
        "MulSupConLoss",
        "MultiSupConLoss",
        "NTXentLoss",
        "SimilarityDissimilarityLoss",
        "SupConAllLoss",
        "SupConAnyLoss",
        "SupConSingleLoss",
        "TripletLoss",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
