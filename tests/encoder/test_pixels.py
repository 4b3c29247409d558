"""Pixels as the encoder expects them: from timm's settings, through training and evaluation, into the export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import marc_dist.files
from marc_dist.augment.views import IMAGENET, PixelScale, eval_transform
from marc_dist.config import Config, ConfigError, DataError, LaunchError, build
from marc_dist.data.loader import TrainLoader, iter_eval
from marc_dist.encoder.export import load_encoder, pixel_scale, save_encoder
from marc_dist.encoder.model import build_encoder
from marc_dist.encoder.published import resolve_scale, scale_of
from marc_dist.retrieval.vectors.embed import Embedder
from marc_dist.training.setup import Setup
from marc_dist.training.trainer import train
from tests.retrieval.runs import make_run, pack_tiny

HALF = PixelScale((0.5,) * 3, (0.5,) * 3, "bilinear")  # timm's for test_resnet
BASE = {"model.backbone": "test_resnet", "model.pretrained": False, "model.head_hidden": 8, "model.head_dim": 4}


def config_of(folder: Path, **words: object) -> Config:
    changes = {key.replace("__", "."): value for key, value in words.items()}
    return build(Config, {**BASE, "data.image_size": 32, "train.run_dir": str(folder), **changes})


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_they_come_from_the_backbone_unless_said_otherwise(tmp_path: Path) -> None:
    assert resolve_scale(config_of(tmp_path)) == HALF
    lite = PixelScale((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert resolve_scale(config_of(tmp_path, model__backbone="tf_efficientnet_lite0")) == lite
    imagenet = PixelScale(IMAGENET.mean, IMAGENET.std, "bicubic")
    assert resolve_scale(config_of(tmp_path, model__backbone="resnet18")) == imagenet
    clip = resolve_scale(config_of(tmp_path, model__backbone="vit_base_patch16_clip_224.openai"))
    assert clip.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4) and clip.interpolation == "bicubic"
    said = config_of(tmp_path, data__mean=[0.1, 0.2, 0.3], data__std=[1, 2, 3], data__interpolation="bicubic")
    assert resolve_scale(said) == PixelScale((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bicubic")
    assert scale_of(Config().data, {}, "mine") == IMAGENET
    for words in ({"data__mean": [0.5]}, {"data__std": [0.5, 0.5, 0]}, {"data__interpolation": "nearest"}):
        with pytest.raises(ConfigError, match=next(iter(words)).replace("__", ".")):
            resolve_scale(config_of(tmp_path, **words))


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_the_whole_tile_is_resized_and_normalised(how: str) -> None:
    """By Pillow, by hand: to one of 255 levels."""
    scale = PixelScale((0.1, 0.2, 0.3), (0.5, 0.25, 0.2), how)  # type: ignore[arg-type]
    image = picture(60, 91)
    resized = np.asarray(image.resize((32, 32), getattr(Image.Resampling, how.upper())), dtype=np.float64) / 255
    expected = (resized - scale.mean) / scale.std
    found = eval_transform(image, 32, scale).permute(1, 2, 0).double().numpy()
    assert np.abs(found - expected).max() < 1.01 / 255 / 0.2 and np.abs(found - expected).mean() < 0.05 / 255 / 0.2


def plain_timm(folder: Path) -> tuple[torch.nn.Module, object]:
    """What anybody makes of an export with timm alone."""
    info = json.loads((folder / "encoder.json").read_text())
    model = timm.create_model(info["backbone"], **info["create"])
    model.load_state_dict(load_file(folder / "encoder.safetensors"))
    size = (3, info["image_size"], info["image_size"])
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return model.eval(), timm.data.create_transform(size, **{name: info[name] for name in names})


@pytest.mark.parametrize("words", [{}, {"model__backbone": "tf_efficientnet_lite0"}, {"data__mean": [0.2, 0.3, 0.4]}])
def test_plain_timm_makes_the_same_features_of_an_export(tmp_path: Path, words: dict[str, object]) -> None:
    config = config_of(tmp_path, **words)
    save_encoder(build_encoder(config.model, 5, 32), config, {})
    encoder, info = load_encoder(tmp_path)
    model, transform = plain_timm(tmp_path)
    assert pixel_scale(info) == resolve_scale(config) and info["weights"] == "random, seed 5"
    for size, bound in (((32, 32), 1e-5), ((70, 50), 0.02)):  # timm resizes by Pillow: now and then one level of 255
        image = picture(*size)
        with torch.inference_mode():
            ours = encoder(eval_transform(image, 32, pixel_scale(info))[None])[0]
            theirs = model(transform(image)[None])  # type: ignore[operator]
        assert (ours - theirs).abs().max() <= bound * max(1.0, float(theirs.abs().max()))
        assert torch.nn.functional.cosine_similarity(ours, theirs).item() > 1 - bound / 10


def test_what_was_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    encoder = build_encoder(config.model, 0, 32)
    real = marc_dist.files.write_atomic

    def damages(path: Path, data: bytes) -> None:
        real(path, data[:-9] + bytes([data[-9] ^ 64]) + data[-8:] if ".safetensors" in path.name else data)

    monkeypatch.setattr(marc_dist.files, "write_atomic", damages)
    with pytest.raises(LaunchError, match=r"encoder.safetensors: .* read back differs from what was written"):
        save_encoder(encoder, config, {})
    monkeypatch.setattr(marc_dist.files, "write_atomic", lambda path, data: real(path, data[:-9]))
    with pytest.raises(LaunchError, match="cannot be read back"):
        save_encoder(encoder, config, {})
    monkeypatch.undo()
    for kind in (torch.float64, torch.float32):
        with torch.no_grad():
            encoder.head[0].weight[0, 0] = float("nan")  # a run that diverged still exports, bit for bit
        save_encoder(encoder.to(kind), config, {"classes": ["a"]})


def test_an_export_of_before_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, data__mean=[0.485, 0.456, 0.406], data__std=[0.229, 0.224, 0.225])
    save_encoder(build_encoder(config.model, 0, 32), config, {})
    file = tmp_path / "encoder.json"
    info = json.loads(file.read_text())
    old = {
        key: value for key, value in info.items() if key not in ("interpolation", "crop_pct", "crop_mode", "weights")
    }
    file.write_text(json.dumps({**old, "format": 1}))
    assert pixel_scale(load_encoder(tmp_path)[1]) == IMAGENET
    for change, message in [
        ({"mean": [0.5, 0.5]}, "mean: expected 3 numbers"),
        ({"std": [0.5, 0.5, 0]}, "std: expected 3 numbers"),
        ({"std": [0.5, 0.5, "x"]}, "std: expected 3 numbers"),
        ({"interpolation": "lanczos"}, "interpolation: expected bilinear or bicubic, got 'lanczos'"),
        ({"crop_pct": 0.875}, "crop_pct: expected 1.0, got 0.875"),
        ({"format": 3}, "expected format 1 to 2, got 3"),
        ({"backbone": "hf-hub:me/x"}, "no model named"),
    ]:
        file.write_text(json.dumps({**info, **change}))
        with pytest.raises((DataError, ConfigError), match=message):
            load_encoder(tmp_path)


def test_every_way_in_uses_the_same_pixels(tmp_path: Path) -> None:
    """Training without augmentation, batched or not, on workers or not, and evaluation give the same tensors."""
    dataset = pack_tiny(tmp_path / "data")
    still = {"crop_min": 1.0, "crop_ratio": 1.0, "hflip": 0, "vflip": 0, "quarter_turns": False, "jitter": 0, "gray": 0}
    words = {"data.dir": str(dataset.root), "augment": still, "data.num_views": 1, "train.global_batch": 8}
    for scale in (HALF, PixelScale((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "bicubic")):
        for more in (
            {"data.num_workers": 0},
            {"data.num_workers": 1, "data.cache": "none"},
            {"data.augment_on": "device"},
        ):
            config = build(Config, {**BASE, **words, "data.image_size": 32, **more})
            ids = dataset.train_rows(config.data)
            expected = torch.cat([images for images, _ in iter_eval(dataset, ids, 32, scale, 8, 0)])
            loader = TrainLoader(dataset, config, 0, 1, scale)
            for batch in loader.epoch(0):
                rows = np.searchsorted(ids, batch.ids.numpy())
                torch.testing.assert_close(batch.images, expected[rows], rtol=0, atol=1e-5)
            loader.close()


def test_a_run_keeps_its_pixels_and_remakes_vectors_of_others(tmp_path: Path) -> None:
    dataset = pack_tiny(tmp_path / "data")
    words = {"data__dir": str(dataset.root), "data__num_workers": 0, "train__global_batch": 16, "train__epochs": 2}
    words |= {"train__device": "cpu", "optim__lr": 1e-4}
    run = tmp_path / "run"
    train(config_of(run, **words, train__max_steps=1))
    for changes in ({"data__mean": [0.4, 0.5, 0.5]}, {"data__interpolation": "bicubic"}):
        with pytest.raises(ConfigError, match="has begun with other pixels.*give data.mean, data.std and data.interp"):
            Setup(config_of(run, **words, **changes), True, lambda step, phase: None)
    assert train(config_of(run, **words)).step > 1
    encoder, info = load_encoder(run)
    assert pixel_scale(info) == HALF and info["weights"] == "random, seed 0"

    def made(scale: PixelScale) -> dict[str, object]:
        embedder = Embedder(
            encoder,
            config_of(run, **words),
            image_size=32,
            scale=scale,
            device=torch.device("cpu"),
            what="trained",
            say=lambda line: None,
        )
        return embedder.made(dataset)

    assert made(HALF) == made(HALF) != made(IMAGENET)
    save_file(load_file(run / "encoder.safetensors"), tmp_path / "w.safetensors")
    assert make_run(tmp_path / "other", dataset, model__weights=str(tmp_path / "w.safetensors")).model.weights
