"""The result of a run: ``encoder.safetensors`` that plain timm loads, ``head.safetensors`` and ``encoder.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from marc_dist.config import Config, DataError, ModelConfig
from marc_dist.training.model import Encoder, check_backbone
from marc_dist.training.runfolder import write_atomic

FORMAT = 1


def _plain(module: Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def save_encoder(encoder: Encoder, config: Config, extra: dict[str, Any]) -> Path:
    """Write the encoder of a run; each file is atomic and ``encoder.json``, which names the others, comes last.

    ``timm.create_model(backbone, **create).load_state_dict(load_file("encoder.safetensors"))`` reads the backbone.

    Args:
        encoder: the trained encoder.
        config: of the run.
        extra: what else the file should say (dataset, classes, fingerprint, step).
    """
    from safetensors.torch import save

    from marc_dist.data.augment import MEAN, STD

    run_dir = Path(config.train.run_dir)
    info = {
        "format": FORMAT,
        "backbone": config.model.backbone,
        "create": encoder.create,
        "num_features": encoder.num_features,
        "head_hidden": config.model.head_hidden,
        "head_dim": config.model.head_dim,
        "image_size": config.data.image_size,
        "mean": [float(value) for value in MEAN],
        "std": [float(value) for value in STD],
        "seed": config.train.seed,
        **extra,
    }
    path = run_dir / "encoder.safetensors"
    write_atomic(path, save(_plain(encoder.backbone), metadata={"format": "pt"}))
    write_atomic(run_dir / "head.safetensors", save(_plain(encoder.head), metadata={"format": "pt"}))
    write_atomic(run_dir / "encoder.json", (json.dumps(info, indent=2) + "\n").encode())
    return path


def load_encoder(path: str | Path) -> tuple[Encoder, dict[str, Any]]:
    """An exported encoder in evaluation mode, float32 on the CPU (float64 when it was trained so), and its description.

    Args:
        path: a run folder, or its ``encoder.safetensors``.

    Raises:
        DataError: a file is missing, damaged, or of another format.
    """
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path).expanduser()
    folder = folder.parent if folder.suffix == ".safetensors" else folder
    try:
        info = json.loads((folder / "encoder.json").read_text())
        backbone_state = load_file(folder / "encoder.safetensors")
        head_state = load_file(folder / "head.safetensors")
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name if error.filename else "encoder.safetensors"
        raise DataError(f"{folder}: no {missing}; a finished marc-train run writes it") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder}: the encoder cannot be read ({(str(error).splitlines() or [''])[0]})") from None
    if info.get("format") != FORMAT:
        raise DataError(f"{folder}/encoder.json: expected format {FORMAT}, got {info.get('format')!r}")
    check_backbone(info["backbone"])
    backbone = timm.create_model(info["backbone"], **info["create"])
    model = ModelConfig(backbone=info["backbone"], head_hidden=info["head_hidden"], head_dim=info["head_dim"])
    encoder = Encoder(backbone, int(info["num_features"]), model, info["create"])
    if any(value.dtype.itemsize == 8 and value.is_floating_point() for value in backbone_state.values()):
        encoder.double()
    try:
        encoder.backbone.load_state_dict(backbone_state, strict=True)
        encoder.head.load_state_dict(head_state, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: the files do not fit {info['backbone']} ({first})") from None
    return encoder.eval(), info
