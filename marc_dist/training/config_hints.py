"""What a person should know of the settings before a run begins: things that are allowed and seldom meant."""

from __future__ import annotations

from marc_dist.config import Config, flatten


def hints(config: Config, num_labels: int) -> list[str]:
    """One line each.

    Args:
        config: the run's settings.
        num_labels: of the data set.
    """
    settings = flatten(config)
    lines = [
        f"{key}={settings[key]}: not read beside the other settings (loss {config.loss.name})"
        for key in config.unread()
    ]
    if config.model.head_only and config.eval.features == "backbone":
        lines.append(
            "eval.features=backbone: the backbone is frozen, so what is searched does not change; use projection"
        )
    batch = config.train.global_batch
    if config.data.sampler == "label_aware" and batch < 2 * num_labels:
        lines.append(
            f"data.sampler=label_aware: a batch of {batch} samples may leave some of {num_labels} labels without a "
            f"partner; from train.global_batch={2 * num_labels} on it never does"
        )
    return lines
