"""Training pictures beside the views that training draws of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from marc_dist.config import MarcError, flatten
from marc_dist.study.plan import Plan, digest
from marc_dist.study.tables.collected import title_of

if TYPE_CHECKING:
    from PIL import Image

PICTURES = 3
"""Of a data set."""


@dataclass(frozen=True)
class Viewed:
    """Pictures of a data set with their views.

    Attributes:
        title: of the data set.
        num_views: that training draws of a picture in an epoch.
        size: of a view, pixels.
        pictures: key, picture and views.
        missing: why there are none; empty where there are.
    """

    title: str
    num_views: int = 0
    size: int = 0
    pictures: tuple[tuple[str, Image.Image, list[Image.Image]], ...] = ()
    missing: str = ""


def augmented_views(plan: Plan) -> list[Viewed]:
    """Views of every data set, once for all encoders and losses that augment alike.

    Args:
        plan: of the study.
    """
    found, seen = [], set()
    for task in plan.cells:
        if task.seed != plan.study.seeds[0]:
            continue
        config = plan.config(task)
        settings = {key: value for key, value in flatten(config).items() if key.startswith(("augment.", "data."))}
        key = digest([task.dataset, config.augment.model_dump(mode="json"), settings, config.model.backbone])
        if key in seen:
            continue
        seen.add(key)
        title = title_of(plan, "datasets", task.dataset)
        several = len(plan.study.encoders) > 1
        title = f"{title}, {title_of(plan, 'encoders', task.encoder)}" if several else title
        try:
            found.append(_viewed(plan, task.name, title))
        except MarcError as error:
            found.append(Viewed(title, missing=str(error)))
    return found


def _viewed(plan: Plan, cell: str, title: str) -> Viewed:
    from marc_dist.data.reader import IndexedReader
    from marc_dist.report.training_views import training_views  # torch

    task = plan.tasks[cell]
    config, dataset = plan.config(task), plan.datasets[task.dataset]
    reader = IndexedReader(dataset)
    try:
        pictures = tuple(
            (str(dataset.keys[sample]), reader.image(sample), views)
            for sample, views in training_views(config, dataset, reader, PICTURES)
        )
    finally:
        reader.close()
    return Viewed(title, config.data.num_views, config.data.image_size, pictures)
