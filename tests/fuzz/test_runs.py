"""What runs leave behind: checkpoints, encoders, the record of an interrupted packing."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from marc_dist.cli.shard import main
from marc_dist.config import Config, DataError, LaunchError, MarcError, build
from marc_dist.encoder.export import load_encoder, save_encoder
from marc_dist.encoder.model import build_encoder
from marc_dist.encoder.weights import load_backbone
from marc_dist.files import write_atomic
from marc_dist.packing import shard_records
from marc_dist.training.checkpoint import checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint
from tests.fuzz.damage import STRANGE, altered, damaged, error_of, fresh, fuzz, little_memory, run, snapshot
from tests.fuzz.test_folders import write


def test_damaged_checkpoints(tmp_path: Path) -> None:
    """With a sum that fits, too: whoever meddles may put it right."""
    payload = {"model": {"w": torch.arange(40.0), "n": torch.tensor(3)}, "epoch": 1, "name": "x"}
    path = save_checkpoint(tmp_path, 7, payload, keep=2)
    sound = path.read_bytes()

    @fuzz(120)
    @given(damaged(sound), st.booleans())
    def check(data: bytes, matching: bool) -> None:
        path.write_bytes(data)
        if matching:
            path.with_suffix(".pt.sha256").write_text(hashlib.sha256(data).hexdigest())
        error_of(lambda: newest_checkpoint(tmp_path, lambda _: None))
        with little_memory(1500):
            error_of(lambda: load_checkpoint(path))

    check()


def test_damaged_pickles(tmp_path: Path) -> None:
    """The pickle inside of the zip, which its CRC would else protect."""
    path = save_checkpoint(tmp_path, 7, {"model": {"w": torch.arange(4.0)}, "epoch": 1}, keep=2)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in parts if name.endswith("data.pkl"))

    @fuzz(120)
    @given(damaged(parts[name]))
    def check(data: bytes) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            for item, content in {**parts, name: data}.items():
                file.writestr(item, content)
        with little_memory(1500):
            error_of(lambda: load_checkpoint(path))

    check()


@pytest.mark.parametrize(
    "payload",
    [
        {"format": 1},  # no step: KeyError
        {"format": 1, "step": "7|8("},  # a pattern of its own: re.error
        {"format": 1, "step": torch.ones(2)},
        {"format": torch.ones(2), "step": 7},  # several truth values: RuntimeError
        {"format": [1], "step": 7},
        [1],
        torch.ones(2),
        None,
    ],
)
def test_checkpoints_that_are_refused(payload: object, tmp_path: Path) -> None:
    torch.save(payload, tmp_path / "step-00000007.pt")
    with pytest.raises(DataError, match="step-00000007.pt: (expected checkpoint format 1|holds step)"):
        load_checkpoint(tmp_path / "step-00000007.pt")


def test_sums_of_checkpoints(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, {"epoch": 1}, keep=2)
    side = path.with_suffix(".pt.sha256")

    @fuzz(30)
    @given(damaged(side.read_bytes()))
    def check(data: bytes) -> None:
        side.write_bytes(data)
        error_of(lambda: newest_checkpoint(tmp_path, lambda _: None))

    check()
    checkpoint_path(tmp_path, 8).mkdir()
    (path.parent / "step-x.pt").write_bytes(b"")
    error_of(lambda: newest_checkpoint(tmp_path, lambda _: None))


def test_a_name_that_cannot_be_one(tmp_path: Path) -> None:
    """Found: a NUL, which YAML can spell, is a ValueError."""
    with pytest.raises(LaunchError, match="cannot be written"):
        write_atomic(tmp_path / "a\0b" / "c", b"")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an exported encoder."""
    root = tmp_path_factory.mktemp("encoder")
    words = {
        "model.backbone": "test_byobnet",
        "model.pretrained": False,
        "model.head_hidden": 8,
        "model.head_dim": 4,
        "train.run_dir": str(root),
    }
    config = build(Config, words)
    save_encoder(build_encoder(config.model, 0, 32), config, {"classes": ["sand", "sea"]})
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.mark.parametrize("name", ["encoder.safetensors", "head.safetensors", "encoder.json"])
def test_damaged_encoders(name: str, encoder: dict[str, bytes], tmp_path: Path) -> None:
    load_encoder(write(tmp_path / "run", encoder))
    header = (
        encoder[name][: 8 + int.from_bytes(encoder[name][:8], "little")] if name != "encoder.json" else encoder[name]
    )

    @fuzz(15)
    @given(damaged(header))
    def check(data: bytes) -> None:
        write(tmp_path / "run", {**encoder, name: data + encoder[name][len(header) :]})
        error_of(lambda: load_encoder(tmp_path / "run"))
        if name != "encoder.json":
            error_of(lambda: load_backbone(torch.nn.Linear(2, 2), tmp_path / "run" / name))

    check()


def test_altered_encoders(encoder: dict[str, bytes], tmp_path: Path) -> None:
    sound = json.loads(encoder["encoder.json"])

    @fuzz(60)
    @given(altered(sound, 1))
    def check(info: Any) -> None:
        write(tmp_path / "run", {**encoder, "encoder.json": json.dumps(info).encode()})
        with little_memory(2000):
            error_of(lambda: load_encoder(tmp_path / "run"))

    check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_features": 10**9}, "num_features or image_size: out of range"),
        ({"num_features": 77}, "head.safetensors does not fit"),
        ({"head_dim": 65536, "head_hidden": 65536}, "head.safetensors does not fit"),  # was made first: 17 GB
        ({"head_dim": "x"}, "head_dim: expected int, got 'x'"),
        ({"head_dim": -1}, "head_dim: expected greater than or equal to 2, got -1"),
        ({"backbone": None}, "backbone: expected str, got None"),
        ({"backbone": "hf-hub:timm/resnet18"}, "timm has no model named"),
        ({"backbone": "local-dir:/tmp"}, "timm has no model named"),
        ({"create": {"checkpoint_path": "/tmp/x.pth"}}, "create: expected options"),  # timm would have loaded it
        ({"create": {"pretrained": True}}, "create: expected options"),
        ({"create": {"num_classes": 0, "dynamic_img_size": True}}, "cannot be made so"),
        ({"classes": [1]}, "classes: expected names"),
        ({"classes": 5}, "classes: expected names"),
        ({"seed": None}, "seed: expected int"),
    ],
)
def test_encoders_that_are_refused(
    change: dict[str, Any], message: str, encoder: dict[str, bytes], tmp_path: Path
) -> None:
    info = json.dumps({**json.loads(encoder["encoder.json"]), **change}).encode()
    with little_memory(2000), pytest.raises(MarcError, match=message):
        load_encoder(write(tmp_path / "run", {**encoder, "encoder.json": info}))


def test_encoders_that_are_no_mapping(encoder: dict[str, bytes], tmp_path: Path) -> None:
    for data, message in ((b"[]", "cannot be read .expected an object, got list"), (b"[" * 100_000, "cannot be read")):
        with pytest.raises(DataError, match=message):
            load_encoder(write(tmp_path / "run", {**encoder, "encoder.json": data}))
    odd = save({"0.weight": torch.zeros(2, 2, dtype=torch.complex64)})
    assert "does not fit" in (
        error_of(lambda: load_encoder(write(tmp_path / "run", {**encoder, "head.safetensors": odd}))) or ""
    )


@pytest.fixture
def interrupted(own: Path, packed: dict[str, bytes], tmp_path: Path) -> tuple[list[str], Path, dict[str, bytes]]:
    """A command, its private folder, and what lies there when it was killed: one finished shard and its record."""
    out = tmp_path / "here" / "out"
    words = [
        "--dataset",
        "folder",
        "--source",
        str(own),
        "--samples-per-shard",
        "3",
        "--workers",
        "1",
        "--out",
        str(out),
    ]
    kept: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_records, "forget", lambda *_: None)
        assert main(words) == 0
    for path in (out / shard_records.FOLDER).iterdir():
        kept[f"{shard_records.FOLDER}/{path.name}"] = path.read_bytes()
        name = path.name.removesuffix(".json")
        kept[name] = (out / name).read_bytes()
    shutil.rmtree(out)
    assert len(kept) == 6
    return [*words, "--resume"], out, kept


def resume(
    words: list[str], out: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> dict[str, bytes]:
    """What the command makes of them; nothing beside its folder."""
    fresh(out.parent)
    partial = out.with_name(".out.partial")
    for name, data in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(data)
    assert run(main, words, capsys)[0] == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_damaged_records(
    interrupted: tuple[list[str], Path, dict[str, bytes]], packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged record or shard is not taken over; the folder is as if nothing had been there."""
    words, out, files = interrupted
    assert resume(words, out, files, capsys) == packed

    @fuzz(15)
    @given(st.sampled_from(sorted(files)), st.data())
    def check(name: str, data: st.DataObject) -> None:
        assert resume(words, out, {**files, name: data.draw(damaged(files[name]))}, capsys) == packed

    check()


def test_records_of_the_right_sum(
    interrupted: tuple[list[str], Path, dict[str, bytes]], packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    words, out, files = interrupted
    name = f"{shard_records.FOLDER}/train-000000.tar.json"
    sound = json.loads(files[name].split(b"\n", 1)[1])

    @fuzz(30)
    @given(st.sampled_from([key for key in sound if key != "rows"]), st.sampled_from(STRANGE), st.booleans())
    def check(key: str, value: Any, drop: bool) -> None:
        noted = {**sound, key: value}
        if drop:
            del noted[key]
        body = json.dumps(noted).encode()
        record = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        assert resume(words, out, {**files, name: record}, capsys) == packed

    check()
    for rows in ([], None, [[]], [[1]] * 3, ["abcdefg"], [None]):
        body = json.dumps({**sound, "rows": rows}).encode()
        record = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        if rows != []:  # a record that is well formed is believed
            assert resume(words, out, {**files, name: record}, capsys) == packed


def test_links_among_the_records(
    interrupted: tuple[list[str], Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found: what lay in the folder that ``.finished`` led to was removed."""
    words, out, _ = interrupted
    fresh(tmp_path / "outside")
    (tmp_path / "outside" / "precious.json").write_text("precious")
    before = snapshot(tmp_path / "outside")
    partial = fresh(out.parent) / ".out.partial"
    partial.mkdir()
    (partial / shard_records.FOLDER).symlink_to(tmp_path / "outside")
    assert run(main, words, capsys)[0] == 0
    assert snapshot(tmp_path / "outside") == before
