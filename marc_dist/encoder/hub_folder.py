"""A trained encoder as a folder for the Hugging Face Hub: timm loads its backbone, marc-dist all of it.

README.md           the model card
config.json         what ``timm.create_model("hf-hub:...", pretrained=True)`` reads
model.safetensors   the backbone
head.safetensors    the projection head
encoder.json        what ``marc_dist.load_encoder`` reads; speaks for the set
labels.txt          labels of the training data, a line each
model.onnx          both together, if asked for
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marc_dist.config import ConfigError, LaunchError, first_line
from marc_dist.encoder.export import HEAD, INFO, SHARED, load_encoder, plain_state
from marc_dist.encoder.model import Encoder
from marc_dist.encoder.onnx_file import as_onnx, check_onnx
from marc_dist.files import write_set

CARD, TIMM_CONFIG, LABELS, ONNX = "README.md", "config.json", "labels.txt", "model.onnx"
BANDS = ("red", "green", "blue")
"""Of an encoder whose ``encoder.json`` says nothing of bands."""
PRIVATE = ("sha256",)
"""Keys of a run's ``encoder.json`` that are about the run folder."""


@dataclass(frozen=True)
class Shared:
    """What was written.

    Attributes:
        folder: where.
        files: name -> bytes.
        onnx_difference: largest difference between the vectors of ONNX Runtime and torch; None without ONNX.
    """

    folder: Path
    files: dict[str, int]
    onnx_difference: float | None


def bands_of(info: Mapping[str, Any]) -> list[str]:
    """Names of the bands that an encoder takes, in order."""
    told = info.get("bands")
    return [str(name) for name in (told["names"] if isinstance(told, Mapping) else BANDS)]


def timm_config(encoder: Encoder, info: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` as timm reads it: architecture, options, and what the backbone expects of pixels.

    Args:
        encoder: of ``load_encoder``.
        info: of ``load_encoder``.
    """
    import timm

    side = int(info["image_size"])
    known = timm.get_pretrained_cfg(encoder.name)
    base: dict[str, Any] = {} if known is None else known.to_dict()
    options = {key: value for key, value in encoder.create.items() if key != "num_classes"}
    fixed = bool(base.get("fixed_input_size"))
    built = side
    if fixed and options.get("dynamic_img_size"):
        built = int(base["input_size"][1])  # the weights of its positions are those of the published size
        options["img_size"], fixed = built, False
    cfg = {
        "tag": "marc_dist",
        "custom_load": False,
        "input_size": [len(info["mean"]), side, side],
        "fixed_input_size": fixed,
        **{key: info[key] for key in ("interpolation", "crop_pct", "crop_mode", "mean", "std")},
        "num_classes": 0,
        **{key: base[key] for key in ("first_conv", "classifier") if base.get(key) is not None},
    }
    return {
        "architecture": encoder.name.partition(".")[0],
        "num_classes": 0,
        "num_features": encoder.num_features,
        "model_args": options,
        "pretrained_cfg": cfg,
    }


def write_hub_folder(
    folder: Path, encoder: Encoder, info: Mapping[str, Any], features: str, card: str, *, onnx: bool = False
) -> Shared:
    """Write the folder and read it back: with timm and with ``load_encoder``, compared bit for bit.

    Args:
        folder: made when it is not there; one that holds other things is refused.
        encoder: of ``load_encoder``.
        info: of ``load_encoder``.
        features: which vectors ``marc_dist.load_encoder`` and the ONNX file give unless told otherwise.
        card: the model card.
        onnx: whether to write ``model.onnx``.

    Raises:
        ConfigError: a folder of other things; ONNX that is not installed or cannot hold this backbone.
        LaunchError: the disk is full, what was written does not read back, or ONNX differs from torch.
    """
    from safetensors.torch import save

    refuse_other_folder(folder)
    if info.get("format", 0) < 2:
        info = {**info, "format": 2, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    files = {
        SHARED: save(plain_state(encoder.backbone), metadata={"format": "pt"}),
        HEAD: save(plain_state(encoder.head), metadata={"format": "pt"}),
        TIMM_CONFIG: _json(timm_config(encoder, info)),
        LABELS: "".join(f"{name}\n" for name in info.get("classes", [])).encode(),
        CARD: card.encode(),
    }
    _check_timm(encoder, files, (len(info["mean"]), int(info["image_size"]), int(info["image_size"])))
    difference = None
    if onnx:
        files[ONNX], difference = as_onnx(encoder, features, len(info["mean"]), int(info["image_size"]))
    told = {key: value for key, value in info.items() if key not in PRIVATE}
    told |= {"band_names": bands_of(info), "features": features}
    told["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_set(folder, files, INFO, _json(told))
    if not onnx:
        (folder / ONNX).unlink(missing_ok=True)
    again, _ = load_encoder(folder)
    if not _equal(again, encoder):
        raise LaunchError(f"{folder}: what was written reads back otherwise; the disk may be full or damaged")
    return Shared(folder, {name: len(data) for name, data in files.items()}, difference)


def refuse_other_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier export.

    Raises:
        ConfigError: names it.
    """
    if (folder.exists() and not folder.is_dir()) or (folder.is_dir() and any(folder.iterdir())):
        if (folder / INFO).is_file() and (folder / TIMM_CONFIG).is_file():
            return
        raise ConfigError(f"{folder}: holds other things than an exported encoder; choose another folder")


def check_share(folder: Path, *, onnx: bool) -> None:
    """What can be said before an encoder is loaded.

    Args:
        folder: to be written.
        onnx: whether ONNX is asked for.

    Raises:
        ConfigError: see ``write_hub_folder``.
    """
    refuse_other_folder(folder)
    if onnx:
        check_onnx()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _check_timm(encoder: Encoder, files: Mapping[str, bytes], shape: tuple[int, int, int]) -> None:
    """Whether timm makes the same backbone of the files.

    Raises:
        LaunchError: it does not.
    """
    import timm

    parameter = next(encoder.parameters())
    pixels = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(parameter.dtype)
    with tempfile.TemporaryDirectory() as place:
        for name in (SHARED, TIMM_CONFIG):
            (Path(place) / name).write_bytes(files[name])
        try:
            again = timm.create_model(f"local-dir:{place}", pretrained=True).to(parameter.dtype).eval()
        except Exception as error:  # timm raises whatever comes up
            raise LaunchError(f"timm cannot load {encoder.name} from what was exported ({first_line(error)})") from None
    with torch.inference_mode():
        if not torch.equal(again(pixels), encoder.backbone(pixels.to(parameter.device))):
            raise LaunchError(f"timm makes another {encoder.name} of what was exported; please report this")


def _equal(one: Encoder, other: Encoder) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key].cpu()) for key in ours)
