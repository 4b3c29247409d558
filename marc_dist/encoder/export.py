"""The result of a run: ``encoder.safetensors`` that plain timm loads, ``head.safetensors`` and ``encoder.json``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from marc_dist.augment.bands import read_band_scale
from marc_dist.augment.views import IMAGENET, PixelScale
from marc_dist.config import Config, DataError, LaunchError, MarcError, ModelConfig, build, first_line, user_path
from marc_dist.encoder.hub import NotAtHand, hub_file
from marc_dist.encoder.model import Encoder, Head
from marc_dist.encoder.published import HUB, check_backbone, resolve_scale, sound_options
from marc_dist.files import read_json, set_member, write_set
from marc_dist.torch_imports import load_timm

FORMAT = 2
"""Of format 1, ``mean`` and ``std`` are there and true, but every picture was resized bilinearly. One more, where the
encoder takes named bands, so that an older version, which would take them for colours, refuses it."""
BACKBONE, HEAD, INFO = "encoder.safetensors", "head.safetensors", "encoder.json"
SHARED = "model.safetensors"
"""The backbone's name in a folder for the Hugging Face Hub, where timm looks for it; see ``hub_folder``."""
MODEL = ("backbone", "head_hidden", "head_dim")
KINDS = {
    "backbone": str, "head_hidden": int, "head_dim": int, "create": dict, "num_features": int, "image_size": int,
    "seed": int, "mean": list, "std": list,
}  # of encoder.json  # fmt: skip
WHOLE = {"crop_pct": 1.0, "crop_mode": "squash"}
"""timm's words for: no crop, the whole tile resized to a square. Reason: ``augment.views.eval_transform``."""


def plain_state(module: Module) -> dict[str, Tensor]:
    """The tensors of a module as files hold them: on the CPU, one after the other."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def save_encoder(encoder: Encoder, config: Config, extra: dict[str, Any], scale: PixelScale | None = None) -> Path:
    """Write the encoder of a run: after a crash ``load_encoder`` finds all of the old one or all of the new one.

    ``timm.create_model(backbone, **create).load_state_dict(load_file("encoder.safetensors"))`` reads the backbone, and
    ``timm.data.create_transform((3, image_size, image_size), mean=mean, std=std, interpolation=interpolation,
    crop_pct=crop_pct, crop_mode=crop_mode)`` makes what it expects of a picture. What was written is read back with
    ``load_encoder`` and compared bit for bit.

    Args:
        encoder: the trained encoder.
        config: of the run.
        extra: what else the file should say (dataset, classes, fingerprint, step).
        scale: the pixels that it was trained with; None = those of the settings, looked up again.

    Raises:
        LaunchError: the disk is full, or does not give back what was written.
    """
    from safetensors.torch import save

    run_dir = Path(config.train.run_dir)
    scale = scale or resolve_scale(config)
    info = {
        "format": FORMAT if scale.bands is None else FORMAT + 1,
        "backbone": encoder.name,
        "create": encoder.create,
        "num_features": encoder.num_features,
        "head_hidden": config.model.head_hidden,
        "head_dim": config.model.head_dim,
        "freeze": config.model.freeze if encoder.frozen_parts else "none",
        "image_size": config.data.image_size,
        **scale.facts(),
        **WHOLE,
        "weights": encoder.origin,
        "seed": config.train.seed,
        **extra,
    }
    path = run_dir / BACKBONE
    files = {BACKBONE: save(plain_state(encoder.backbone), metadata={"format": "pt"})}
    files[HEAD] = save(plain_state(encoder.head), metadata={"format": "pt"})
    info["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_set(run_dir, files, INFO, (json.dumps(info, indent=2) + "\n").encode())
    _read_back(encoder, info, path)
    return path


def _read_back(encoder: Encoder, info: dict[str, Any], path: Path) -> None:
    """Whether the files give the encoder that was written.

    Raises:
        LaunchError: they do not; names the first tensor that differs.
    """
    remedy = "the disk may be full or damaged; the run's checkpoints are whole, start it again"
    try:
        again, told = load_encoder(path)
    except MarcError as error:
        raise LaunchError(f"{path}: was written, but cannot be read back ({error}); {remedy}") from None
    there, kept = again.state_dict(), encoder.state_dict()
    wrong = [key for key, value in kept.items() if key not in there or not _same(value.cpu(), there[key])]
    if wrong or there.keys() != kept.keys() or told != json.loads(json.dumps(info)):
        what = wrong[0] if wrong else "encoder.json"
        raise LaunchError(f"{path}: {what} read back differs from what was written; {remedy}")


def _same(written: Tensor, read: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    equal = written.dtype == read.dtype and written.shape == read.shape
    return equal and torch.equal(
        written.contiguous().view(-1).view(torch.uint8), read.contiguous().view(-1).view(torch.uint8)
    )


def pixel_scale(info: dict[str, Any]) -> PixelScale:
    """What an exported encoder expects of pixels, from its ``encoder.json``."""
    mean, std = tuple(info["mean"]), tuple(info["std"])
    bands = read_band_scale(info["bands"]) if "bands" in info else None
    return PixelScale(mean, std, info.get("interpolation", IMAGENET.interpolation), bands)


def _check_info(file: Path, info: Any) -> None:
    """Whether ``encoder.json`` says what is needed, and nothing that would make timm load something else."""
    known = range(FORMAT + 1, FORMAT + 2) if isinstance(info, dict) and "bands" in info else range(1, FORMAT + 1)
    if not isinstance(info, dict) or info.get("format") not in known:
        got = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise DataError(f"{file}: expected format {' to '.join(map(str, known))}, got {got!r:.60}")
    for key, kind in KINDS.items():
        if type(info.get(key)) is not kind:
            raise DataError(f"{file}: {key}: expected {kind.__name__}, got {info.get(key)!r:.60}; export the run again")
    if not (0 < info["num_features"] < 1 << 20 and 16 <= info["image_size"] <= 4096):
        raise DataError(f"{file}: num_features or image_size: out of range; export the run again")
    fits = {"num_classes": 0, "dynamic_img_size": True, "img_size": info["image_size"], "in_chans": len(info["mean"])}
    if not sound_options(info["create"]) or any(fits[key] != info["create"].get(key, fits[key]) for key in fits):
        raise DataError(f"{file}: create: expected options of {fits}, got {info['create']!r:.100}")
    _check_pixels(file, info)
    classes = info.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{file}: classes: expected names")


def _check_pixels(file: Path, info: dict[str, Any]) -> None:
    num = 3
    if "bands" in info:
        try:
            num = len(read_band_scale(info["bands"]).names)
        except ValueError as error:
            raise DataError(f"{file}: bands: {error}; export the run again") from None
    if num != info["create"].get("in_chans", 3):
        raise DataError(f"{file}: create: in_chans: expected {num}, one a band; export the run again")
    for key, least in (("mean", -1e3), ("std", 1e-6)):
        numbers = [value for value in info[key] if type(value) in (int, float) and least <= value <= 1e3]
        if len(numbers) != num or len(info[key]) != num:
            raise DataError(f"{file}: {key}: expected {num} numbers, got {info[key]!r:.60}; export the run again")
    if info["format"] == 1:
        return
    known = {"interpolation": ("bilinear", "bicubic"), **{key: (value,) for key, value in WHOLE.items()}}
    for key, values in known.items():
        if info.get(key) not in values:
            expected = " or ".join(map(str, values))
            raise DataError(f"{file}: {key}: expected {expected}, got {info.get(key)!r:.60}; export the run again")


def _files(folder: Path, tries: int = 2) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """``encoder.json``, and the weights of backbone and head that it speaks of."""
    from safetensors.torch import load_file

    info = read_json(folder / INFO)
    try:
        sums = info.get("sha256")
        names = (SHARED if isinstance(sums, dict) and SHARED in sums else BACKBONE, HEAD)
        backbone, head = (load_file(set_member(folder, name, sums)) for name in names)
    except FileNotFoundError:  # an export may have moved one just now
        if tries == 1:
            raise
        return _files(folder, tries - 1)
    return info, backbone, head


def encoder_home(path: str | Path) -> Path:
    """The folder of an encoder: as it is given, that of a file, or where the hub's cache keeps a repository.

    Raises:
        DataError: a repository of the hub that is not at hand.
    """
    name = str(path)
    if not name.startswith(HUB):
        folder = user_path(path)
        return folder.parent if folder.suffix == ".safetensors" else folder
    repo = name.partition(":")[2]
    try:
        return [hub_file(repo, [file])[0] for file in (SHARED, HEAD, INFO)][-1].parent
    except NotAtHand as error:
        raise DataError(
            f"{name}: not at hand ({error}); expected a repository that marc-eval --export or marc-study --export wrote"
        ) from None


def load_encoder(path: str | Path) -> tuple[Encoder, dict[str, Any]]:
    """An exported encoder in evaluation mode, float32 on the CPU (float64 when it was trained so), and its description.

    Args:
        path: a run folder or one of ``hub_folder``, or its ``.safetensors``; or ``hf-hub:ORG/NAME``.

    Raises:
        DataError: a file is missing, damaged, or of another format; a repository that is not at hand.
    """
    timm = load_timm()

    folder = encoder_home(path)
    try:
        info, backbone_state, head_state = _files(folder)
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name if error.filename else "encoder.safetensors"
        raise DataError(f"{folder}: no {missing}; a finished marc-train run writes it") from None
    except Exception as error:  # safetensors raises whatever comes up; a deep JSON is a RecursionError
        raise DataError(f"{folder}: the encoder cannot be read ({first_line(error)})") from None
    _check_info(folder / "encoder.json", info)
    known = {**{key: info[key] for key in MODEL}, "pretrained": False}
    model = build(ModelConfig, known, place=f"{folder / 'encoder.json'}: ")
    check_backbone(model.backbone)
    with torch.device("meta"):  # shapes alone: what the file says may be of any size
        head = Head(info["num_features"], model.head_hidden, model.head_dim).state_dict()
    for name, fill in (("mean", torch.zeros), ("std", torch.ones)):  # of a run before heads had them
        head_state.setdefault(name, fill(info["num_features"]))
    if {key: value.shape for key, value in head.items()} != {key: value.shape for key, value in head_state.items()}:
        raise DataError(f"{folder}: head.safetensors does not fit encoder.json; export the run again")
    try:
        if set(info["create"]) - {
            "num_classes",
            "dynamic_img_size",
            "img_size",
            "in_chans",
        }:  # of a hub's: shapes first
            with torch.device("meta"):
                shapes = timm.create_model(model.backbone, **info["create"]).state_dict()
            if any(key not in backbone_state or backbone_state[key].shape != x.shape for key, x in shapes.items()):
                raise ValueError("encoder.safetensors has other shapes")
        backbone = timm.create_model(model.backbone, **info["create"])
    except Exception as error:  # an option that this backbone does not have, or a value that it refuses
        raise DataError(
            f"{folder}/encoder.json: create: {model.backbone} cannot be made so ({first_line(error)})"
        ) from None
    encoder = Encoder(backbone, info["num_features"], model, info["create"])
    encoder.origin = str(info.get("weights", ""))
    if any(value.dtype.itemsize == 8 and value.is_floating_point() for value in backbone_state.values()):
        encoder.double()
    try:
        encoder.backbone.load_state_dict(backbone_state, strict=True)
        encoder.head.load_state_dict(head_state, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: the files do not fit {info['backbone']} ({first})") from None
    return encoder.eval(), info
