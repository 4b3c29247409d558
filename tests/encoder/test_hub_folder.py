"""Encoders for the Hugging Face Hub: timm and marc-dist load what was written, ONNX says the same, the card is read."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub as hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import marc_dist
from marc_dist.cli.eval import main
from marc_dist.config import Config, ConfigError, LaunchError, build
from marc_dist.data.dataset import Dataset
from marc_dist.encoder import hub_folder, onnx_file
from marc_dist.encoder.export import load_encoder, save_encoder
from marc_dist.encoder.hub_folder import write_hub_folder
from marc_dist.encoder.model import build_encoder
from marc_dist.report.sharing.model_card import Facts, model_card
from tests.encoder.test_weights import put
from tests.retrieval.runs import make_run


def exported(folder: Path, backbone: str = "test_resnet", **changes: object) -> tuple[Path, Config]:
    """A run folder with an encoder of random weights, and its settings."""
    values = {
        "model.backbone": backbone, "model.pretrained": False, "model.head_hidden": 8, "model.head_dim": 6,
        "data.image_size": 64, "train.run_dir": str(folder / "run"), **changes,
    }  # fmt: skip
    config = build(Config, values)
    extra = {"dataset": "tiny", "classes": ["sea", "sand & <b>"], "fingerprint": "0" * 64, "step": 3}
    save_encoder(build_encoder(config.model, 5, config.data.image_size), config, extra)
    return folder / "run", config


def pictures(num: int) -> list[Image.Image]:
    rng = np.random.default_rng(4)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)) for _ in range(num)]


@pytest.mark.parametrize(
    "backbone",
    ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"],
)
def test_timm_and_marc_dist_load_the_folder(backbone: str, tmp_path: Path) -> None:
    """Of a fixed input size or not, adapted or built for the size: features and vectors are equal to the bit."""
    run, _ = exported(tmp_path, backbone)
    encoder, info = load_encoder(run)
    write_hub_folder(tmp_path / "out", encoder, info, "projection", "# card\n")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    ours, again = marc_dist.load_encoder(run), marc_dist.load_encoder(tmp_path / "out")
    pixels = torch.stack([transform(picture) for picture in pictures(3)])
    torch.testing.assert_close(pixels, torch.stack([ours.transform(picture) for picture in pictures(3)]))
    with torch.inference_mode():
        assert torch.equal(model(pixels), encoder.backbone(pixels))
    assert again.features == "projection" and again.dim == 6 and again.classes == ours.classes
    assert np.array_equal(marc_dist.embed(again, pictures(3)), marc_dist.embed(ours, pictures(3)))
    assert (tmp_path / "out/labels.txt").read_text() == "sea\nsand & <b>\n"
    assert json.loads((tmp_path / "out/encoder.json").read_text())["band_names"] == ["red", "green", "blue"]


def test_a_repository_of_the_hub_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run, _ = exported(tmp_path)
    encoder, info = load_encoder(run)
    write_hub_folder(tmp_path / "out", encoder, info, "backbone", "# card\n")
    for name in ("model.safetensors", "head.safetensors", "encoder.json"):
        put(tmp_path / "hub", "me/tiles", name, (tmp_path / "out" / name).read_bytes())
    again = marc_dist.load_encoder("hf-hub:me/tiles")
    assert again.features == "backbone"
    assert all(torch.equal(x, y) for x, y in zip(encoder.parameters(), again.encoder.parameters(), strict=True))
    with pytest.raises(marc_dist.DataError, match=r"hf-hub:me/other: not at hand \(HF_HUB_OFFLINE"):
        marc_dist.load_encoder("hf-hub:me/other")


def test_onnx_takes_any_number_of_pictures_and_gives_torchs_vectors(tmp_path: Path) -> None:
    run, _ = exported(tmp_path, "test_vit")
    encoder, info = load_encoder(run)
    shared = write_hub_folder(tmp_path / "out", encoder, info, "concat", "# card\n", onnx=True)
    assert shared.onnx_difference is not None and shared.onnx_difference <= onnx_file.BOUND == 1e-5
    data = (tmp_path / "out/model.onnx").read_bytes()
    ours = marc_dist.load_encoder(tmp_path / "out")
    for num in (1, 2, 7):
        pixels = torch.stack([ours.transform(picture) for picture in pictures(num)])
        with torch.inference_mode():
            wanted = ours(pixels).numpy()
        found = onnx_file.onnx_vectors(data, pixels.numpy())
        assert found.shape == (num, 64 + 8 + 6) and np.abs(found - wanted).max() <= 1e-5
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    write_hub_folder(tmp_path / "out", encoder, info, "concat", "# card\n")
    assert not (tmp_path / "out/model.onnx").exists()  # of the export before: nobody would know what it holds


def test_onnx_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = exported(tmp_path)
    encoder, info = load_encoder(run)
    monkeypatch.setattr(onnx_file, "BOUND", 1e-12)
    with pytest.raises(LaunchError, match=r"model.onnx: expected unit vectors within 1e-12 of torch's"):
        write_hub_folder(tmp_path / "out", encoder, info, "projection", "# card\n", onnx=True)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = exported(tmp_path)
    encoder, info = load_encoder(run)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("mine")
    with pytest.raises(ConfigError, match="notes: holds other things than an exported encoder; choose another"):
        write_hub_folder(tmp_path / "notes", encoder, info, "projection", "")
    with pytest.raises(ConfigError, match="run: holds other things"):
        write_hub_folder(run, encoder, info, "projection", "")
    monkeypatch.setattr(onnx_file, "NEEDED", ("onnx", "no_such_onnx"))
    with pytest.raises(ConfigError, match=r"--onnx: no_such_onnx is not installed; .* pip install 'marc-dist\[onnx\]'"):
        hub_folder.check_share(tmp_path / "out", onnx=True)


def test_a_run_is_exported_with_a_card_that_the_hub_reads(
    tiny: Dataset, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my-tiles"
    assert main([str(evaluated), "--export", str(out), "--license", "mit"]) == 0
    assert "exported: " in capsys.readouterr().out
    card = hub.ModelCard.load(out / "README.md")
    told = card.data
    assert told.license == "mit" and told.library_name == "timm" and told.datasets == ["tiny"]
    assert "remote-sensing" in told.tags and told.model_name == "my-tiles"
    summary = json.loads((evaluated / "eval/test_vs_train/metrics.json").read_text())
    results = {result.metric_type: result for result in told.eval_results}
    assert results["nDCG@10"].metric_value == pytest.approx(summary["scores"]["trained"]["nDCG@10"], abs=1e-6)
    low, high = summary["intervals"]["scores"]["trained"]["nDCG@10"]
    assert results["nDCG@10"].metric_args == {
        "interval": 0.95, "low": pytest.approx(low, abs=1e-6), "high": pytest.approx(high, abs=1e-6), "over": "queries"
    }  # fmt: skip
    assert results["label_mAP"].metric_value == pytest.approx(summary["thirds"]["trained"]["all"]["mAP"], abs=1e-6)
    assert "<script>" not in card.text  # names are of somebody else's data
    counts = tiny.label_counts("train")
    assert f"| red &amp; blue | {counts[0]} |" in card.content and str(evaluated) not in card.content
    assert marc_dist.load_encoder(out).features == "backbone"  # the run's eval.features


def test_an_exported_folder_is_evaluated_like_its_run(evaluated: Path, tiny: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    assert main([str(evaluated), "--export", str(out)]) == 0
    words = ["--data", str(tiny.root), "--no-report", "eval.ks=[3,10]", "eval.batch=4", "eval.baseline=false"]
    assert main([str(out), "data.num_workers=0", "train.device=cpu", *words]) == 0
    ours, theirs = (json.loads((run / "eval/test_vs_train/metrics.json").read_text()) for run in (out, evaluated))
    assert ours["features"] == "backbone" and ours["scores"]["trained"] == theirs["scores"]["trained"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--onnx"], "--onnx: belongs to an export; give --export DIR, too"),
        (["--license", "mit"], "--license: belongs to an export"),
        (["--export", "x", "--list"], "--export: expected one run folder and nothing else to do"),
    ],
)
def test_words_of_an_export_that_do_not_fit(
    words: list[str], message: str, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(evaluated), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_scores_says_so_on_its_card(
    tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", tiny)
    assert main([str(tmp_path / "run"), "--export", str(tmp_path / "out")]) == 0
    assert "no evaluation of eval.features=backbone, so the card has no scores" in capsys.readouterr().err
    assert "None: the run has no evaluation." in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_an_encoder_of_named_bands_says_how_values_become_pixels() -> None:
    bands = {"names": ["B04", "B08"], "dtype": "uint16", "scaling": "percentiles", "low": [10, 20], "high": [900, 4000]}
    info = {"image_size": 120, "num_features": 96, "mean": [0.5, 0.25], "std": [0.1, 0.2], "bands": bands,
            "classes": ["a"], "dataset": "ben"}  # fmt: skip
    facts = Facts("x", info, "resnet18", "", "", "projection", 6, {"loss.name": "macl"}, {}, {}, [], 0.95, None, True)
    card = model_card(facts)
    assert "| 1 | B08 | 20 | 4000 | 0.25 | 0.2 |" in card and "Arrays of uint16" in card
    assert "features = model(pixels)  # (B, 2, 120, 120)" in card and "Bands are B04, B08" in card
    told = hub.ModelCard(card).data
    assert told.license == "other" and told.eval_results is None and told.datasets == ["ben"]
