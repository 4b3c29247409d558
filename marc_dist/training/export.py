"""The result of a run: ``encoder.safetensors`` that plain timm loads, ``head.safetensors`` and ``encoder.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from marc_dist.config import Config, DataError, ModelConfig, build, user_path
from marc_dist.training.model import Encoder, check_backbone, make_head
from marc_dist.training.runfolder import write_atomic

FORMAT = 1
MODEL = ("backbone", "head_hidden", "head_dim")
KINDS = {
    "backbone": str, "head_hidden": int, "head_dim": int, "create": dict, "num_features": int, "image_size": int,
    "seed": int,
}  # of encoder.json  # fmt: skip


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


def _check_info(file: Path, info: Any) -> None:
    """Whether ``encoder.json`` says what is needed, and nothing that would make timm load something else."""
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        got = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise DataError(f"{file}: expected format {FORMAT}, got {got!r}")
    for key, kind in KINDS.items():
        if type(info.get(key)) is not kind:
            raise DataError(f"{file}: {key}: expected {kind.__name__}, got {info.get(key)!r:.60}; export the run again")
    if not (0 < info["num_features"] < 1 << 20 and 16 <= info["image_size"] <= 4096):
        raise DataError(f"{file}: num_features or image_size: out of range; export the run again")
    fits = {"num_classes": 0, "dynamic_img_size": True, "img_size": info["image_size"]}
    if any(key not in fits or fits[key] != value for key, value in info["create"].items()):
        raise DataError(f"{file}: create: expected options of {fits}, got {info['create']!r:.100}")
    classes = info.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{file}: classes: expected names")


def load_encoder(path: str | Path) -> tuple[Encoder, dict[str, Any]]:
    """An exported encoder in evaluation mode, float32 on the CPU (float64 when it was trained so), and its description.

    Args:
        path: a run folder, or its ``encoder.safetensors``.

    Raises:
        DataError: a file is missing, damaged, or of another format.
    """
    import timm
    from safetensors.torch import load_file

    folder = user_path(path)
    folder = folder.parent if folder.suffix == ".safetensors" else folder
    try:
        info = json.loads((folder / "encoder.json").read_text())
        backbone_state = load_file(folder / "encoder.safetensors")
        head_state = load_file(folder / "head.safetensors")
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name if error.filename else "encoder.safetensors"
        raise DataError(f"{folder}: no {missing}; a finished marc-train run writes it") from None
    except Exception as error:  # safetensors raises whatever comes up; a deep JSON is a RecursionError
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: the encoder cannot be read ({first})") from None
    _check_info(folder / "encoder.json", info)
    model = build(ModelConfig, {key: info[key] for key in MODEL}, place=f"{folder / 'encoder.json'}: ")
    check_backbone(model.backbone)
    with torch.device("meta"):  # shapes alone: what the file says may be of any size
        head = make_head(info["num_features"], model.head_hidden, model.head_dim).state_dict()
    if {key: value.shape for key, value in head.items()} != {key: value.shape for key, value in head_state.items()}:
        raise DataError(f"{folder}: head.safetensors does not fit encoder.json; export the run again")
    try:
        backbone = timm.create_model(model.backbone, **info["create"])
    except Exception as error:  # an option that this backbone does not have, or a value that it refuses
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}/encoder.json: create: {model.backbone} cannot be made so ({first})") from None
    encoder = Encoder(backbone, info["num_features"], model, info["create"])
    if any(value.dtype.itemsize == 8 and value.is_floating_point() for value in backbone_state.values()):
        encoder.double()
    try:
        encoder.backbone.load_state_dict(backbone_state, strict=True)
        encoder.head.load_state_dict(head_state, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: the files do not fit {info['backbone']} ({first})") from None
    return encoder.eval(), info
