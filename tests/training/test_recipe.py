"""A fine-tuning recipe: rates of layers, thawing, averaged weights, the best epoch, early stopping, more epochs."""

from __future__ import annotations

import contextlib
import copy
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest
import timm.optim
import torch
from torch import Tensor

from marc_dist.config import Config, ConfigError, ModelConfig, OptimConfig, build
from marc_dist.config.schema import ValidationMetric
from marc_dist.encoder.export import load_encoder
from marc_dist.encoder.model import Encoder, Learner, build_encoder
from marc_dist.run.folder import checkpoints, read_lines
from marc_dist.training.checkpoint import checkpoint_path, load_checkpoint
from marc_dist.training.schedule import build_optimiser, learning_rate, set_learning_rate
from marc_dist.training.signals import StopFlag
from marc_dist.training.trainer import TrainResult, train
from marc_dist.training.validation.scores import METRICS, validate
from tests.training.test_frozen import StopAfter
from tests.training.test_trainer import RTOL, _difference, _metrics, _state, _words
from tests.worlds import run_in_world

A_EPOCH = 4  # steps: 43 of 53 samples are trained on, 13 at a time
STEPS = 14


def words_of(data: Path, run: Path, **more: Any) -> dict[str, Any]:
    """A head on kept features for an epoch, then everything; averaged, validated, the best kept."""
    recipe = {
        "model.freeze": "backbone",
        "model.thaw_after": 1,
        "model.batch_norm": "sync",
        "optim.name": "adamw",
        "optim.lr": 3e-3,
        "optim.backbone_lr_scale": 0.1,
        "optim.layer_decay": 0.5,
        "data.validation_share": 0.2,
        "data.features_dir": str(data.parent / "features-of-recipes"),
        "eval.batch": 8,
        "train.ema": 0.8,
        "train.keep_best": "nDCG@10",
        "train.epochs": 5,
        "train.max_steps": STEPS,
    }
    return {**_words(data, run), **recipe, **{key.replace("__", "."): value for key, value in more.items()}}


def config_of(data: Path, run: Path, **more: Any) -> Config:
    return build(Config, words_of(data, run, **more))


def short(data: Path, run: Path, **more: Any) -> dict[str, Any]:
    """The head alone, four steps an epoch: for what does not depend on the backbone."""
    return words_of(data, run, model__thaw_after=None, train__ema=None, optim__layer_decay=None, **more)


def go(words: dict[str, Any], stop_after: int | None = None) -> tuple[int, bool]:
    result = train(build(Config, words), stop=StopFlag() if stop_after is None else StopAfter(stop_after))
    return result.step, result.interrupted


def everything(run: Path, step: int = STEPS) -> dict[str, Tensor]:
    """What a step changes, the averages and the best weights."""
    payload = load_checkpoint(checkpoint_path(run, step))
    state = _state(run, step) | {f"ema.{name}": value for name, value in payload["ema"].items()}
    return state | {f"best.{name}": value for name, value in payload["best"]["weights"].items()}


@pytest.fixture(scope="module")
def whole(small_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("recipe") / "whole"
    assert run_in_world(go, 1, words_of(small_dir, run)) == [(STEPS, False)]
    return run


def test_the_backbone_rests_and_then_learns(whole: Path, small_dir: Path, tmp_path: Path) -> None:
    first = build_encoder(config_of(small_dir, whole).model, 0, 32).double().backbone.state_dict()
    go(words_of(small_dir, tmp_path / "short", train__max_steps=A_EPOCH))
    rested = load_checkpoint(checkpoint_path(tmp_path / "short", A_EPOCH))
    assert all(torch.equal(rested["model"][f"backbone.{name}"], value) for name, value in first.items())
    learnt = load_checkpoint(checkpoint_path(whole, STEPS))["model"]
    assert not any(
        torch.equal(learnt[f"backbone.{name}"], value) for name, value in first.items() if value.is_floating_point()
    )
    assert learnt["head.std"].ne(1).any()  # of the kept features, and for ever
    assert torch.equal(learnt["head.std"], rested["model"]["head.std"])


@pytest.mark.parametrize("stops", [(2,), (A_EPOCH,), (A_EPOCH - 1, 2, 5)])
def test_a_stopped_run_ends_in_the_same_bits(
    stops: tuple[int, ...], whole: Path, small_dir: Path, tmp_path: Path
) -> None:
    """Before thawing, at the very step, and after it; averages and the best epoch go on, too."""
    words, step = words_of(small_dir, tmp_path / "run"), 0
    for steps in stops:
        step += steps
        assert run_in_world(go, 1, words, stop_after=steps - 1) == [(step, True)]
    assert run_in_world(go, 1, words) == [(STEPS, False)]
    ours, theirs = everything(tmp_path / "run"), everything(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    scores = [[{**line, "time": 0, "seconds": 0} for line in read_lines(run / "validation.jsonl")]
              for run in (whole, tmp_path / "run")]  # fmt: skip
    assert scores[0] == scores[1] and len(scores[0]) == 4
    (encoder, info), (other, told) = load_encoder(tmp_path / "run"), load_encoder(whole)
    assert info == told
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("size", [2, 3])
def test_more_ranks_take_the_same_run(size: int, whole: Path, small_dir: Path, tmp_path: Path) -> None:
    run_in_world(go, size, words_of(small_dir, tmp_path / "run"))
    assert _difference(everything(tmp_path / "run"), everything(whole)) < RTOL
    for line, other in zip(_metrics(tmp_path / "run"), _metrics(whole), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-7), line["step"]


def test_parts_of_the_backbone_thaw_too(small_dir: Path, tmp_path: Path) -> None:
    more = {"model__freeze": ["conv1", "layer1"], "train__max_steps": A_EPOCH + 1, "train__checkpoint_every": 1}
    more |= {"train__keep_checkpoints": 9}
    run_in_world(go, 2, words_of(small_dir, tmp_path / "two", **more))
    go(words_of(small_dir, tmp_path / "one", **more))
    for run in (tmp_path / "one", tmp_path / "two"):
        states = [load_checkpoint(path)["model"] for path in checkpoints(run)]
        still = [torch.equal(a["backbone.conv1.0.weight"], b["backbone.conv1.0.weight"])
                 for a, b in zip(states, states[1:], strict=False)]  # fmt: skip
        assert still == [True] * (A_EPOCH - 1) + [False]
        assert not torch.equal(states[0]["backbone.layer4.0.conv1.weight"], states[1]["backbone.layer4.0.conv1.weight"])
    last = A_EPOCH + 1
    assert _difference(everything(tmp_path / "one", last), everything(tmp_path / "two", last)) < RTOL


@pytest.mark.parametrize("loss", [{"loss__memory": 30}, {"loss__name": "msc"}])
def test_what_a_loss_keeps_crosses_the_thaw(loss: dict[str, Any], small_dir: Path, tmp_path: Path) -> None:
    """Embeddings of earlier steps, or prototypes: stopped at the thaw, on two ranks, it is the run of one."""
    words = words_of(small_dir, tmp_path / "two", train__max_steps=A_EPOCH + 2, **loss)
    assert run_in_world(go, 2, words, stop_after=A_EPOCH - 1) == [(A_EPOCH, True)] * 2
    run_in_world(go, 2, words)
    go({**words, "train.run_dir": str(tmp_path / "one")})
    one, two = (everything(tmp_path / name, A_EPOCH + 2) for name in ("one", "two"))
    assert any(name.startswith(("memory.", "prototypes")) for name in one)
    assert _difference(one, two) < RTOL


def test_the_average_is_the_naive_one(small_dir: Path, tmp_path: Path) -> None:
    """Weights and batch-norm statistics of every step, averaged again in numbers of Python."""
    more = {"model__freeze": "none", "model__thaw_after": None, "train__max_steps": 6, "train__checkpoint_every": 1}
    go(words_of(small_dir, tmp_path / "run", train__keep_checkpoints=9, **more))
    payloads = [load_checkpoint(path) for path in checkpoints(tmp_path / "run")]
    average = dict(payloads[0]["model"])
    for step, payload in enumerate(payloads[1:], start=2):
        share = min(0.8, 1 - step**-0.75)
        for name, value in payload["model"].items():
            average[name] = share * average[name] + (1 - share) * value if value.is_floating_point() else value
        for name, value in average.items():
            assert torch.allclose(payload["ema"][name], value, rtol=1e-12, atol=1e-15), (step, name)
    assert (payloads[-1]["ema"]["head.0.weight"] - payloads[-1]["model"]["head.0.weight"]).abs().max() > 1e-5


class Scripted:
    """Scores as a test wants them; keeps the weights that it was shown."""

    def __init__(self, scores: list[float], metric: str = "nDCG@10") -> None:
        self.scores, self.metric = iter(scores), metric
        self.shown: list[dict[str, Tensor]] = []

    def __call__(self, encoder: Encoder, *rest: Any) -> dict[str, float]:
        self.shown.append({name: value.clone() for name, value in encoder.state_dict().items()})
        return {self.metric: next(self.scores)}


def scripted(words: dict[str, Any], scores: list[float]) -> tuple[TrainResult, Scripted]:
    scorer = Scripted(scores)
    return train(build(Config, words), validate=scorer), scorer


@pytest.mark.parametrize(("ema", "only_head"), [(None, True), (0.9, False), (None, False)])
def test_the_best_epoch_is_exported(ema: float | None, only_head: bool, small_dir: Path, tmp_path: Path) -> None:
    words = words_of(small_dir, tmp_path, train__ema=ema, train__max_steps=None, train__epochs=4)
    words |= {"model.thaw_after": None, "optim.layer_decay": None} if only_head else {}
    _, scorer = scripted(words, [0.5, 0.9, 0.9, 0.7])
    encoder, info = load_encoder(tmp_path)
    assert info["step"] == 2 * A_EPOCH and info["best"] == {"nDCG@10": 0.9, "epoch": 2}  # the earlier of two equal ones
    assert all(torch.equal(value, scorer.shown[1][name]) for name, value in encoder.state_dict().items())
    assert not torch.equal(scorer.shown[1]["head.0.weight"], scorer.shown[3]["head.0.weight"])


def test_without_keep_best_the_last_epoch_is_exported(small_dir: Path, tmp_path: Path) -> None:
    words = short(small_dir, tmp_path, train__keep_best=None, train__max_steps=None, train__epochs=2)
    _, scorer = scripted(words, [0.9, 0.5])
    encoder, info = load_encoder(tmp_path)
    assert info["step"] == 2 * A_EPOCH and "best" not in info
    assert torch.equal(encoder.state_dict()["head.0.weight"], scorer.shown[1]["head.0.weight"])


def test_patience_ends_a_run_once(small_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = short(small_dir, tmp_path, train__patience=2, train__max_steps=None, train__epochs=8)
    result, _ = scripted(words, [0.5, 0.6, 0.6, 0.1, 0.9])
    assert (result.step, result.interrupted) == (4 * A_EPOCH, False)
    said = capfd.readouterr().err
    assert "no better nDCG@10 in 2 validations: the run ends after step 16; the best was 0.6000 at epoch 2" in said
    assert load_encoder(tmp_path)[1]["best"] == {"nDCG@10": 0.6, "epoch": 2}
    again, scorer = scripted(words, [])  # nothing is left to do
    assert again.step == again.resumed_from == 4 * A_EPOCH and not scorer.shown
    longer, _ = scripted({**words, "train.patience": 3}, [0.4, 0.9])  # one more is allowed now, and none is needed
    assert longer.step == 5 * A_EPOCH
    assert load_encoder(tmp_path)[1]["best"] == {"nDCG@10": 0.6, "epoch": 2}


@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_a_crash_around_a_validation_changes_no_best(where: str, small_dir: Path, tmp_path: Path) -> None:
    """The checkpoint is there before the scores; killed before, within, or right after them, the best is the same."""
    scores = [0.5, 0.9, 0.9, 0.7]
    words = short(small_dir, tmp_path / "run", train__max_steps=None, train__epochs=4, train__keep_checkpoints=9)
    whole = {**words, "train.run_dir": str(tmp_path / "whole")}
    scripted(whole, scores)

    class Dying(Scripted):
        def __call__(self, *given: Any) -> dict[str, float]:
            assert checkpoint_path(tmp_path / "run", A_EPOCH * (len(self.shown) + 1)).is_file()
            if len(self.shown) == 1 and where == "within":
                raise KeyboardInterrupt
            return super().__call__(*given)

    class Late(StopFlag):
        def __bool__(self) -> bool:
            if where == "after" and len(scorer.shown) == 2:
                raise KeyboardInterrupt
            return where == "before" and len(scorer.shown) == 1 and next(steps) == A_EPOCH - 1

    steps, scorer = itertools.count(), Dying(scores)
    with contextlib.suppress(KeyboardInterrupt):
        train(build(Config, words), validate=scorer, stop=Late())
    again, rest = scripted(words, scores[len(scorer.shown) :])
    assert again.resumed_from == 2 * A_EPOCH and len(scorer.shown) + len(rest.shown) == 4
    payloads = [load_checkpoint(checkpoint_path(tmp_path / name, 4 * A_EPOCH))["best"] for name in ("run", "whole")]
    ours, theirs = (payload.pop("weights") for payload in payloads)
    assert payloads[0] == payloads[1] and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert load_encoder(tmp_path / "run")[1]["best"] == load_encoder(tmp_path / "whole")[1]["best"]


def test_another_metric_begins_anew(small_dir: Path, tmp_path: Path) -> None:
    words = short(small_dir, tmp_path, train__max_steps=None, train__epochs=2)
    scripted(words, [0.9, 0.5])
    scorer = Scripted([0.2, 0.3], "mAP")
    train(build(Config, {**words, "train.keep_best": "mAP", "train.epochs": 3}), validate=scorer)
    assert load_encoder(tmp_path)[1]["best"] == {"mAP": 0.3, "epoch": 3}  # epoch 2 was scored again, by the new one
    assert [line["step"] for line in read_lines(tmp_path / "validation.jsonl")] == [4, 8, 12]  # and not written twice


def test_epochs_may_grow_and_the_schedule_says_so(
    small_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = short(small_dir, tmp_path, train__max_steps=None, train__epochs=2)
    train(build(Config, words), validate=None)
    train(build(Config, {**words, "train.epochs": 4}), validate=None)
    said = " ".join(capfd.readouterr().err.split())
    assert "train.epochs was 2, now 4: from step 9 on, the learning rate follows the schedule of 4 epochs" in said
    rates = [line["lr"] for line in _metrics(tmp_path)]
    optim = build(Config, words).optim
    assert rates == pytest.approx([learning_rate(optim, step, 8 if step < 8 else 16) for step in range(16)])
    with pytest.raises(ConfigError, match="train.epochs was 4, now 3"):
        train(build(Config, {**words, "train.epochs": 3}), validate=None)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "test_efficientnet"])
def test_layers_decay_as_in_timm(backbone: str) -> None:
    encoder = build_encoder(ModelConfig(backbone=backbone, pretrained=False, head_dim=4, head_hidden=4), 0)
    config = OptimConfig(weight_decay=0.1, layer_decay=0.7, backbone_lr_scale=0.2)
    optimiser = build_optimiser(config, Learner(encoder, 3, 4, 0))
    set_learning_rate(optimiser, 2.0)
    ours = {id(p): (group["lr"], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]}
    theirs = {}
    for group in timm.optim.param_groups_layer_decay(
        encoder.backbone, weight_decay=0.1, no_weight_decay_list=getattr(encoder.backbone, "no_weight_decay", set)(),
        layer_decay=0.7,
    ):  # fmt: skip
        theirs |= {id(parameter): (0.4 * group["lr_scale"], group["weight_decay"]) for parameter in group["params"]}
    assert {len(set(theirs.values())) > 3, theirs.keys() <= ours.keys()} == {True}
    for parameter in encoder.backbone.parameters():
        assert ours[id(parameter)] == pytest.approx(theirs[id(parameter)])
    assert {ours[id(parameter)][0] for parameter in encoder.head.parameters()} == {2.0}


@pytest.mark.parametrize("name", ["nadamw", "lamb", "lion", "adan"])
def test_every_optimiser_goes_on_in_the_same_bits(name: str) -> None:
    def fresh() -> tuple[Encoder, torch.optim.Optimizer]:
        encoder = build_encoder(ModelConfig(backbone="test_resnet", pretrained=False, head_dim=4, head_hidden=0), 0)
        return encoder, build_optimiser(OptimConfig(name=name, backbone_lr_scale=0.5), encoder)

    def step(encoder: Encoder, optimiser: torch.optim.Optimizer, number: int) -> None:
        optimiser.zero_grad()
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(number))
        encoder(images)[1].square().sum().backward()
        set_learning_rate(optimiser, 0.01)
        optimiser.step()

    one, optimiser = fresh()
    before = {key: value.clone() for key, value in one.state_dict().items()}
    for number in range(3):
        step(one, optimiser, number)
        if number == 1:
            half = copy.deepcopy((one.state_dict(), optimiser.state_dict()))
            other, again = fresh()
            other.load_state_dict(half[0])
            again.load_state_dict(half[1])
    step(other, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(one.state_dict()["head.0.weight"], before["head.0.weight"])


def test_two_schedules_part_at_the_thaw() -> None:
    config = OptimConfig(lr=1.0, warmup_share=0.25)
    rates = [learning_rate(config, step, 12, 4) for step in range(12)]
    assert rates == [learning_rate(config, step, 4) for step in range(4)] + [
        learning_rate(config, step, 8) for step in range(8)
    ]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"train.patience": 3}, "train.patience waits for a better score, but train.keep_best names none"),
        ({"train.keep_best": "mAP"}, "train.keep_best=mAP is a score of validation samples, but data.validation_share"),
        ({"model.freeze": "backbone", "train.ema": 0.9}, "train.ema averages an encoder's weights, but model.freeze"),
        ({"model.freeze": "backbone", "optim.layer_decay": 0.9}, "optim.layer_decay slows layers of the backbone, but"),
        ({"model.freeze": "backbone", "model.thaw_after": 5, "train.epochs": 5}, "comes after the end of train.epochs"),
    ],
)
def test_settings_that_mean_nothing_alone_are_refused(words: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        build(Config, words)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_layers_is_refused() -> None:
    encoder = build_encoder(ModelConfig(backbone="test_resnet", pretrained=False), 0)
    encoder.backbone.group_matcher = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"optim\.layer_decay: timm knows no layers of test_resnet; leave it out"):
        build_optimiser(OptimConfig(layer_decay=0.5), encoder)


def test_a_best_of_labels_that_nobody_asks_for_is_refused(small_dir: Path, tmp_path: Path) -> None:
    config = config_of(small_dir, tmp_path, data__validation_share=0.02, train__keep_best="rare_mAP")
    with pytest.raises(ConfigError, match=r"train\.keep_best=rare_mAP: none of the \d+ validation samples"):
        train(config, validate=validate)


def test_what_nothing_reads_is_named() -> None:
    assert build(Config, {"model.thaw_after": 3, "train.tracker_project": "x"}).unread() == [
        "model.thaw_after", "train.tracker_project"
    ]  # fmt: skip
    frozen = {"model.freeze": "backbone", "optim.backbone_lr_scale": 0.1, "train.compile": True, "model.drop_rate": 0.1}
    assert build(Config, frozen).unread() == ["model.drop_rate", "optim.backbone_lr_scale", "train.compile"]
    assert not build(Config, {**frozen, "model.thaw_after": 1}).unread()
    assert build(Config, {"optim.name": "lion", "optim.momentum": 0.5}).unread() == ["optim.momentum"]


def test_a_best_epoch_is_of_a_score_that_validation_gives() -> None:
    assert get_args(ValidationMetric) == tuple(METRICS)


def test_only_our_own_setting_clips() -> None:
    encoder = build_encoder(ModelConfig(backbone="test_resnet", pretrained=False), 0)
    assert build_optimiser(OptimConfig(name="lamb"), encoder).defaults["max_grad_norm"] is None


@pytest.mark.parametrize(
    ("words", "norm"),
    [
        ({}, "frozen"),
        ({"weights": "x.pth", "pretrained": False}, "frozen"),
        ({"pretrained": False}, "sync"),
        ({"batch_norm": "sync"}, "sync"),
        ({"pretrained": False, "batch_norm": "frozen"}, "frozen"),
    ],
)
def test_statistics_of_published_weights_rest(words: dict[str, Any], norm: str) -> None:
    assert build(ModelConfig, words).norm == norm
