"""Named bands from the files to the scores: what near infrared alone tells, red, green and blue cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from marc_dist.api.dataset import open_dataset as open_tiles
from marc_dist.api.encoder import embed
from marc_dist.api.encoder import load_encoder as load_image_encoder
from marc_dist.config import Config, ConfigError, DataError, build
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.encoder.export import load_encoder, pixel_scale
from marc_dist.encoder.model import build_encoder
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from marc_dist.retrieval.archive import Archive
from marc_dist.retrieval.evaluate import evaluate
from marc_dist.training import trainer
from tests import band_archive
from tests.worlds import run_in_world

LIMIT_S = 600.0  # of a world; seconds on a machine that does nothing else
COLOURS, WITH_NIR = ("B04", "B03", "B02"), ("B04", "B03", "B02", "B08")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("bands")
    recipe = band_archive.make(folder / "in", 120, 24)
    pack(read_source(load_recipe(str(recipe)), [folder / "in"]), folder / "shards")
    return open_dataset(folder / "shards")


def words(dataset: Dataset, run: Path, bands: tuple[str, ...], **more: Any) -> dict[str, Any]:
    return {
        "data.dir": str(dataset.root),
        "data.bands": bands,
        "data.image_size": 24,
        "data.num_workers": 0,
        "model.backbone": "test_resnet",
        "model.pretrained": False,
        "model.head_hidden": 16,
        "model.head_dim": 8,
        "augment.crop_min": 0.6,
        "train.run_dir": str(run),
        "train.epochs": 4,
        "train.global_batch": 21,
        "train.device": "cpu",
        "eval.baseline": False,
        "eval.panels": 0,
    } | {key.replace("__", "."): value for key, value in more.items()}


def _silent(line: str) -> None:
    """Nobody listens."""


def _train(told: dict[str, Any]) -> list[float]:
    trainer.RunLog.say = lambda self, message: None  # type: ignore[method-assign]
    trainer.train(build(Config, told))
    lines = (Path(told["train.run_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in line]


def _score(told: dict[str, Any]) -> float:
    _train(told)
    found = evaluate(build(Config, told), Path(told["train.run_dir"]), _silent)
    return float(found["scores"]["trained"]["mAP"])


def test_near_infrared_tells_what_colours_cannot(archive: Dataset, tmp_path: Path) -> None:
    (blind,) = run_in_world(_score, 1, words(archive, tmp_path / "blind", COLOURS), limit_s=LIMIT_S)
    (seeing,) = run_in_world(_score, 1, words(archive, tmp_path / "seeing", WITH_NIR), limit_s=LIMIT_S)
    queries, answers = (archive.label_rows(archive.rows(split)) for split in ("test", "train"))
    chance = float(((queries.astype(int) @ answers.astype(int).T) > 0).mean())
    assert blind < chance + 0.08 and seeing > chance + 0.25, (chance, blind, seeing)

    encoder, info = load_encoder(tmp_path / "seeing")
    told = info["bands"]
    assert told["names"] == list(WITH_NIR) and (told["scaling"], told["dtype"]) == ("percentiles", "uint16")
    at = [archive.meta["bands"]["names"].index(name) for name in WITH_NIR]
    for key, column in (("low", "p2"), ("high", "p98"), ("mean", "mean"), ("std", "std")):
        assert told[key] == [archive.meta["bands"]["statistics"][column][place] for place in at]
    assert pixel_scale(info).num_bands == 4 and encoder.create["in_chans"] == 4

    config = build(Config, words(archive, tmp_path / "seeing", WITH_NIR[::-1]))
    with pytest.raises(ConfigError, match=r"B08, B02, B03, B04, but the encoder of .* takes B04, B03, B02, B08"):
        evaluate(config, tmp_path / "seeing", _silent)
    config = build(Config, words(archive, tmp_path / "seeing", WITH_NIR))
    search = Archive(tmp_path / "seeing", archive, None, (), config, lambda line: None)
    key = str(archive.keys[0])
    (answer,) = search.search([archive.root.parent / f"in/tiles/{key}.tif"], 3)
    assert archive.keys[answer.hits[0].id] == key and answer.hits[0].same and not answer.hits[1].same

    loaded = load_image_encoder(tmp_path / "seeing")
    tiles = open_tiles(archive.root, "test", bands=WITH_NIR)
    vectors = embed(loaded, tiles)
    assert tiles[0].image.shape == (24, 24, 4) and tiles[0].image.dtype == np.uint16
    path = archive.root.parent / f"in/tiles/{tiles.keys[0]}.tif"
    with torch.inference_mode():
        own = loaded(loaded.transform(tiles[0].image)[None]).numpy()
    for one in (own, embed(loaded, [path])):
        assert np.allclose(one, vectors[:1], atol=1e-5)
    for wrong, said in (
        (tiles[0].image[:, :, :3], "of the bands B04, B03, B02, B08"),
        (tiles[0].image / 2, "expected uint16"),
    ):
        with pytest.raises(ValueError, match=said):
            loaded.transform(wrong)


def test_an_encoder_refuses_data_of_other_bands(archive: Dataset, tiny: Dataset, tmp_path: Path) -> None:
    run_in_world(_train, 1, words(archive, tmp_path / "run", WITH_NIR, train__max_steps=1), limit_s=LIMIT_S)
    config = build(Config, words(tiny, tmp_path / "run", WITH_NIR))
    with pytest.raises(
        DataError, match="red, green and blue of 8 bits, but the encoder takes the bands B04, B03, B02, B08"
    ):
        Archive(tmp_path / "run", tiny, None, (), config, lambda line: None)
    info = json.loads((tmp_path / "run/encoder.json").read_text())
    info["bands"]["names"][3] = "B10"
    (tmp_path / "run/encoder.json").write_text(json.dumps(info))
    config = build(Config, {**words(archive, tmp_path / "run", WITH_NIR), "data.bands": None})
    with pytest.raises(DataError, match="no band B10; the encoder takes B04, B03, B02, B10, the data has B01, B02"):
        Archive(tmp_path / "run", archive, None, (), config, lambda line: None)
    for faulty in ({"dtype": "int8"}, {"names": ["B04"]}):
        broken = {**info, "bands": {**info["bands"], **faulty}}
        (tmp_path / "run/encoder.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"encoder\.json: bands: "):
            load_encoder(tmp_path / "run")


def test_settings_that_do_not_fit_the_bands_are_one_line(archive: Dataset, tiny: Dataset, tmp_path: Path) -> None:
    from marc_dist.encoder.published import resolve_scale

    for told, dataset, said in (
        ({"data.bands": ["B04", "B10"]}, archive, r"data\.bands: .* has no band B10; expected some of B01, B02"),
        ({"data.bands": ["B04"]}, tiny, r"data\.bands: .* has red, green and blue of 8 bits"),
        (
            {"data.bands": ["B04"], "data.mean": [0.5, 0.5]},
            archive,
            r"data\.mean: expected 1 numbers, one a band, got 2",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            resolve_scale(build(Config, {"model.pretrained": False, **told}), dataset)
    for told, said in (
        ({"data.bands": ["B04", "B04"]}, "expected different names"),
        ({"data.range": [0, 1]}, r"nothing reads it with data\.scaling=percentiles"),
        ({"data.scaling": "range", "data.range": [1, 0]}, "a smaller and a larger value"),
    ):
        with pytest.raises(ConfigError, match=said):
            build(Config, told)
    plain = {"model.pretrained": False, "data.bands": ["B08"]}
    reflectance = resolve_scale(build(Config, {**plain, "data.scaling": "reflectance"}), archive)
    assert reflectance.bands is not None and (reflectance.bands.low, reflectance.bands.high) == ((0.0,), (10_000.0,))
    ranged = resolve_scale(build(Config, {**plain, "data.scaling": "range"}), archive)
    assert ranged.bands is not None and ranged.bands.high == (65_535.0,)
    assert "augment.hue" in build(Config, {**plain, "augment.hue": 0.1}).unread()


def test_two_ranks_train_what_one_trains(archive: Dataset, tmp_path: Path) -> None:
    more = {"train__precision": "float64", "train__max_steps": 6, "train__log_every": 1, "augment__band_dropout": 0.2}
    more["train__global_batch"] = 83  # of 84 samples: a rank has none of the second step
    losses, weights = [], []
    for size in (1, 2):
        run = tmp_path / f"ranks{size}"
        losses.append(run_in_world(_train, size, words(archive, run, WITH_NIR, **more), limit_s=LIMIT_S)[0])
        weights.append(load_file(run / "encoder.safetensors"))
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-9)
    for name, value in weights[0].items():
        assert torch.allclose(value.double(), weights[1][name].double(), rtol=1e-7, atol=1e-9), name


def test_published_first_layers_are_adapted_as_timm_does(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file
    from timm.models import adapt_input_conv

    source = timm.create_model("test_resnet", pretrained=False)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = build(Config, {"model.backbone": "test_resnet", "model.weights": str(tmp_path / "w.safetensors")}).model
    for num in (1, 4, 12):
        encoder = build_encoder(model, 0, 24, in_chans=num)
        first = encoder.backbone.pretrained_cfg["first_conv"]
        own = encoder.backbone.state_dict()[f"{first}.weight"]
        assert torch.equal(own, adapt_input_conv(num, source.state_dict()[f"{first}.weight"]))
        assert f"adapted to {num} bands" in encoder.origin
