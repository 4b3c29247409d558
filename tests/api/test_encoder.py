"""Loading an encoder, and embedding with it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from marc_dist import DataError, embed, load_encoder, open_dataset
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader


@pytest.mark.parametrize(("features", "dim"), [(None, 32), ("projection", 6), ("hidden", 8), ("concat", 46)])
def test_the_module_gives_unit_vectors(finished: Path, packed: Dataset, features: str | None, dim: int) -> None:
    """Of the run's own features when none are named; gradients flow."""
    encoder = load_encoder(finished / "encoder.safetensors", features=features)
    width = encoder.encoder.num_features
    dim = width if features is None else dim if features != "concat" else width + 14
    test = open_dataset(packed.root, "test", transform=encoder.transform)
    pixels = next(iter(DataLoader(test, batch_size=4))).image
    out = encoder(pixels)
    assert out.shape == (4, dim) == (4, encoder.dim) and encoder.classes == packed.classes and not encoder.training
    assert torch.allclose(out.norm(dim=1), torch.ones(4), atol=1e-6)
    assert np.allclose(out.detach().numpy(), embed(encoder, test, batch=4)[:4], atol=1e-6)
    out.sum().backward()
    assert any(parameter.grad is not None for parameter in encoder.parameters())


def test_pictures_paths_and_data_sets_give_the_same_vectors(finished: Path, packed: Dataset, tmp_path: Path) -> None:
    encoder, test, reader = load_encoder(finished), open_dataset(packed.root, "test"), IndexedReader(packed)
    pictures = [reader.image(row) for row in test.ids.tolist()]
    paths: list[Any] = [tmp_path / f"{at}.png" for at in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    vectors = embed(encoder, test, batch=4)
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors, embed(encoder, pictures, batch=4))
    assert np.array_equal(vectors, embed(encoder, [str(paths[0]), *paths[1:]], batch=4, num_workers=1))
    assert embed(encoder, []).shape == (0, encoder.dim)


def test_modes_are_left_as_they_were_and_transforms_travel(finished: Path) -> None:
    encoder, picture = load_encoder(finished).train(), Image.new("L", (40, 30), 128)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    embed(encoder, [picture])
    assert encoder.training and all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    again = pickle.loads(pickle.dumps(encoder.transform))
    assert again(picture).shape == (3, 32, 32) and torch.equal(again(picture), encoder.transform(picture))


def test_bad_input_is_one_clear_error(finished: Path, tmp_path: Path) -> None:
    encoder = load_encoder(finished)
    with pytest.raises(ValueError, match=r"features: expected one of backbone, .*; did you mean projection\?"):
        load_encoder(finished, features="projecton")
    with pytest.raises(DataError, match=r"no encoder.json|encoder.safetensors"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="batch: expected a whole number of 1 or more, got 0"):
        embed(encoder, [], batch=0)
    for other in (None, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="encoder: expected what load_encoder gives, got (NoneType|Linear)"):
            embed(other, [])  # type: ignore[arg-type]
    for num_workers in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="num_workers: expected a whole number of 0 or more, got"):
            embed(encoder, [], num_workers=num_workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"path: expected a text or a pathlib.Path, got NoneType"):
        load_encoder(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected open_dataset.* or a list of PIL pictures and paths, got str"):
        embed(encoder, "one.png")
    with pytest.raises(ValueError, match="expected PIL pictures and paths, got int at place 0"):
        embed(encoder, [3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="none.png: cannot be read"):
        embed(encoder, [tmp_path / "none.png"])
    with torch.no_grad():
        next(encoder.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="picture 1: its vector is not finite|picture 0: its vector is not finite"):
        embed(encoder, [Image.new("RGB", (8, 8))] * 2)
