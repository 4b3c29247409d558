"""The promises of a run: the same at any world size, interrupted or not; guards that act on all ranks alike."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from marc_dist import comm
from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, ConfigError, DataError, LaunchError, build, load_config
from marc_dist.data.dataset import open_dataset
from marc_dist.encoder.export import load_encoder
from marc_dist.training import setup, trainer
from marc_dist.training.checkpoint import checkpoint_path, load_checkpoint
from marc_dist.training.signals import StopFlag
from marc_dist.training.step import step_seed
from tests.worlds import WorldError, run_in_world

STEPS = 20
VARYING = {"time", "images_per_s", "loader_wait"}
STOP_AFTER = 7
RTOL = 1e-9
DROPS = {"model.drop_path": 0.4, "model.drop_rate": 0.3}
BATCH = 13  # of 53 samples: unequal for 2 and 3 ranks, and the last batch of an epoch is one sample: a rank has none


def _words(sample: Path, run: Path, **more: Any) -> dict[str, Any]:
    """A float64 run with everything on that breaks under a wrong factor: SGD, momentum, clipping, weight decay."""
    words: dict[str, Any] = {
        "data.dir": str(sample),
        "data.image_size": 32,
        "data.num_workers": 0,
        "data.mean": IMAGENET.mean,  # with timm\'s for it, 0.5, this small network is dead after five of these steps
        "data.std": IMAGENET.std,
        "model.backbone": "test_resnet",
        "model.pretrained": False,
        "model.head_hidden": 16,
        "model.head_dim": 8,
        "optim.name": "sgd",
        "optim.lr": 0.05,
        "optim.weight_decay": 1e-3,
        "train.run_dir": str(run),
        "train.epochs": 40,
        "train.max_steps": STEPS,
        "train.global_batch": BATCH,
        "train.device": "cpu",
        "train.precision": "float64",
        "train.log_every": 1,
        "train.checkpoint_every": 1000,
    }
    return words | {key.replace("__", "."): value for key, value in more.items()}


class _Recording(setup.TrainLoader):  # type: ignore[misc]
    """The real loader; writes down the ids of this rank, and does harm where a test asks for it."""

    seen: list[tuple[int, int, list[int]]] = []
    nan_at: dict[int, int] = {}  # step of the run -> rank whose images break
    signal_at: tuple[int, int] | None = None  # (batches given out, rank)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        for place, batch in enumerate(super().epoch(epoch, start_step), start=start_step):
            step = epoch * self.steps_per_epoch + place
            self.seen.append((step, batch.global_size, batch.ids.tolist()))
            if self.nan_at.get(step) == comm.rank():
                batch.images[-1, 0, 0, 0] = float("nan")
            if self.signal_at == (step, comm.rank()):
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch


def _train(
    words: dict[str, Any], nan_at: dict[int, int] | None = None, signal_at: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Train on this rank; what happened, and the ids that it was given."""
    setup.TrainLoader = _Recording  # type: ignore[misc]
    said: list[str] = []
    trainer.RunLog.say = lambda self, message: said.append(message)  # type: ignore[method-assign,assignment]
    _Recording.seen, _Recording.nan_at, _Recording.signal_at = [], nan_at or {}, signal_at
    with StopFlag().installed() as stop:
        result = trainer.train(build(Config, words), stop=stop)
    return {"seen": _Recording.seen, "said": said, **dataclasses.asdict(result)}


def _state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything that a step changes: weights, running statistics, momentum."""
    payload = load_checkpoint(checkpoint_path(run, step))
    state = {f"model.{name}": value for name, value in payload["model"].items()}
    state |= {f"memory.{name}": value for name, value in payload["memory"].items() if len(value)}
    if payload["prototypes"] is not None:
        state["prototypes"] = payload["prototypes"]
    for number, entry in payload["optimiser"]["state"].items():
        state |= {f"{number}.{name}": value for name, value in entry.items() if isinstance(value, torch.Tensor)}
    return state


def _difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of two states, tensor by tensor (norms)."""
    assert a.keys() == b.keys()
    worst = 0.0
    for name, value in a.items():
        scale = max(float(value.double().norm()), 1e-12)
        worst = max(worst, float((value.double() - b[name].double()).norm()) / scale)
    return worst


def _ids(results: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Global step -> the ids of all ranks, in rank order."""
    steps: dict[int, list[int]] = {}
    for result in results:
        for step, size, ids in result["seen"]:
            steps.setdefault(step, []).extend(ids)
            assert 0 <= len(ids) <= size
    return steps


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(small_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[int]]]:
    """The undisturbed run of one process: folder, and ids of each step."""
    run = tmp_path_factory.mktemp("runs") / "one"
    results = run_in_world(_train, 1, _words(small_dir, run))
    return run, _ids(results)


def _same_run(run: Path, whole: tuple[Path, dict[int, list[int]]], ids: dict[int, list[int]]) -> None:
    assert ids == whole[1]
    difference = _difference(_state(whole[0], STEPS), _state(run, STEPS))
    assert difference < RTOL, f"relative difference of the weights: {difference:.3e}"
    lines, expected = _metrics(run), _metrics(whole[0])
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, other in zip(lines, expected, strict=True):
        for key in other.keys() - VARYING:
            assert line[key] == pytest.approx(other[key], rel=1e-7), (line["step"], key)


def test_one_process_learns_and_sees_every_sample_once_an_epoch(
    whole: tuple[Path, dict[int, list[int]]], small_dir: Path
) -> None:
    run, ids = whole
    rows = open_dataset(small_dir).rows("train").tolist()
    per_epoch = -(-len(rows) // BATCH)
    assert per_epoch < STEPS  # more than one epoch, so that its small last batch is among the steps
    assert sorted(sum((ids[step] for step in range(per_epoch)), [])) == rows
    assert len(ids[per_epoch - 1]) == 1
    lines = _metrics(run)
    assert any(line["grad_norm"] > 1.0 for line in lines)  # clipping acts
    assert _difference(_state(run, STEPS), {k: torch.zeros_like(v) for k, v in _state(run, STEPS).items()}) > 0


@pytest.mark.parametrize("size", [2, 3])
def test_more_ranks_give_the_same_ids_and_weights(
    size: int, whole: tuple[Path, dict[int, list[int]]], small_dir: Path, tmp_path: Path
) -> None:
    results = run_in_world(_train, size, _words(small_dir, tmp_path / "run"))
    assert any(not ids for result in results for _, _, ids in result["seen"])  # a rank was once without rows
    _same_run(tmp_path / "run", whole, _ids(results))


def test_stopped_at_world_three_and_resumed_at_world_two(
    whole: tuple[Path, dict[int, list[int]]], small_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = _words(small_dir, run)
    first = run_in_world(_train, 3, words, signal_at=(STOP_AFTER - 1, 1))  # one rank is asked, all stop
    assert [(r["step"], r["interrupted"]) for r in first] == [(STOP_AFTER, True)] * 3
    assert not (run / "encoder.safetensors").exists()
    with (run / "metrics.jsonl").open("a") as file:  # a later, unsaved step, as a killed run leaves it
        file.write(json.dumps({"step": STOP_AFTER + 1, "loss": 0}) + '\n{"step":')
    second = run_in_world(_train, 2, words)
    assert [(r["resumed_from"], r["step"], r["interrupted"]) for r in second] == [(STOP_AFTER, STEPS, False)] * 2
    ids = _ids(first)
    again = _ids(second)
    assert not ids.keys() & again.keys()
    _same_run(run, whole, ids | again)


def test_a_finished_run_is_not_trained_again(whole: tuple[Path, dict[int, list[int]]], small_dir: Path) -> None:
    before = _state(whole[0], STEPS)
    (result,) = run_in_world(_train, 1, _words(small_dir, whole[0]))
    assert (result["resumed_from"], result["step"], result["seen"]) == (STEPS, STEPS, [])
    assert _difference(before, _state(whole[0], STEPS)) == 0


def test_the_exported_encoder_is_plain_timm(whole: tuple[Path, dict[int, list[int]]], small_dir: Path) -> None:
    run = whole[0]
    info = json.loads((run / "encoder.json").read_text())
    backbone = timm.create_model("test_resnet", num_classes=0).double()
    backbone.load_state_dict(load_file(run / "encoder.safetensors"), strict=True)
    encoder, same = load_encoder(run)
    assert same == info
    assert info["classes"] == list(open_dataset(small_dir).classes)
    assert (info["step"], info["image_size"], info["num_features"]) == (STEPS, 32, encoder.num_features)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = {name.removeprefix("model."): v for name, v in _state(run, STEPS).items() if name.startswith("model.")}
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    with torch.no_grad():
        features, projection = encoder(x)
        assert torch.equal(features, backbone.eval()(x))
        assert torch.equal(load_encoder(run / "encoder.safetensors")[0](x)[1], projection)


def test_a_broken_export_is_one_line(whole: tuple[Path, dict[int, list[int]]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no encoder.json; a finished marc-train run writes it"):
        load_encoder(tmp_path)
    for name in ("encoder.json", "encoder.safetensors", "head.safetensors"):
        (tmp_path / name).write_bytes((whole[0] / name).read_bytes())
    info = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps(info | {"backbone": "test_vit"}))
    with pytest.raises(DataError, match="do not fit test_vit"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps(info | {"format": 9}))
    with pytest.raises(DataError, match="expected format 1 to 2, got 9"):
        load_encoder(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        load_encoder(tmp_path)


def test_config_yaml_is_a_run_file(whole: tuple[Path, dict[int, list[int]]], small_dir: Path) -> None:
    assert load_config(whole[0] / "config.yaml") == build(Config, _words(small_dir, whole[0]))


def test_tensorboard_has_every_step_once(whole: tuple[Path, dict[int, list[int]]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(whole[0])).Reload()
        steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, STEPS + 1))


def test_a_nan_on_one_rank_is_skipped_by_all(small_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = {"train.checkpoint_every": 1, "train.keep_checkpoints": 9, "train.max_steps": 4, "train.ema": 0.8}
    results = run_in_world(_train, 2, _words(small_dir, run) | more, nan_at={2: 1})
    assert [result["skipped"] for result in results] == [1, 1]
    assert _difference(_state(run, 2), _state(run, 3)) == 0  # weights, running statistics and momentum
    two, three, four = (load_checkpoint(checkpoint_path(run, step))["ema"] for step in (2, 3, 4))
    assert _difference(two, three) == 0 and _difference(three, four) > 0  # nor are the averages older by a step
    assert _difference(_state(run, 3), _state(run, 4)) > 0
    (line,) = [json.loads(text) for text in (run / "skipped.jsonl").read_text().splitlines()]
    ids = _ids(results)[2]
    assert line["step"] == 3
    assert sum((entry["ids"] for entry in line["ranks"]), []) == ids
    assert [entry["nonfinite_images"] for entry in line["ranks"]] == [[], [ids[-1]]]
    assert [(entry["step"], entry["loss"] is None) for entry in _metrics(run)] == [
        (1, False),
        (2, False),
        (3, True),
        (4, False),
    ]


def test_a_skipped_step_leaves_no_row_in_the_memory(small_dir: Path, tmp_path: Path) -> None:
    more = {"train.checkpoint_every": 1, "train.keep_checkpoints": 9, "train.max_steps": 4, "loss.memory": 30}
    run_in_world(_train, 2, _words(small_dir, tmp_path / "run") | more, nan_at={2: 1})
    memory = [load_checkpoint(checkpoint_path(tmp_path / "run", step))["memory"] for step in (2, 3, 4)]
    assert torch.equal(memory[0]["ids"], memory[1]["ids"]) and not torch.equal(memory[1]["ids"], memory[2]["ids"])
    assert torch.isfinite(memory[2]["embeddings"]).all()
    assert [line["skipped"] for line in _metrics(tmp_path / "run")] == [0, 0, 1, 1]


def _train_error(words: dict[str, Any], nan_at: dict[int, int]) -> tuple[str, int]:
    try:
        _train(words, nan_at=nan_at)
    except LaunchError as error:
        return str(error), len(_Recording.seen)
    return "no error", 0


def test_too_many_in_a_row_end_the_run_on_all_ranks(small_dir: Path, tmp_path: Path) -> None:
    words = _words(small_dir, tmp_path / "run", train__max_nonfinite=3)
    results = run_in_world(_train_error, 2, words, {0: 0, 2: 0, 3: 1, 4: 0})  # 0 alone does not count towards 3
    for message, steps in results:
        assert "step 5: loss or gradients not finite 3 times in a row" in message
        assert steps == 5


def _plain(words: dict[str, Any]) -> bool:
    if comm.rank():
        _train(words)
        return True
    with pytest.warns(UserWarning, match=r"the result depends on the number of ranks; use sync or frozen"):
        _train(words)
    return True


def test_plain_batch_norm_says_what_it_costs(small_dir: Path, tmp_path: Path) -> None:
    words = _words(small_dir, tmp_path / "run", model__batch_norm="plain", train__max_steps=1)
    assert run_in_world(_plain, 2, words) == [True, True]
    run_in_world(_train, 1, words)  # alone there is nothing to warn about (warnings are errors)


@pytest.mark.parametrize(
    "more",
    [
        {"loss.counts": "train", "optim.name": "adamw"},
        {"model.batch_norm": "frozen", "loss.aggregate": "anchor_mean", "loss.implementation": "streamed"},
        {"loss.name": "ntxent", "model.backbone": "test_vit"},
        {"loss.name": "msc"},
        {"loss.name": "triplet", "loss.selection": "diverse"},
        {"data.sampler": "label_aware", "loss.aggregate": "class_balanced"},
        {"loss.memory": 37, "loss.temperature_scope": "per_positive_row"},
        {"model.backbone": "test_vit", "train.chunk": 3, "loss.name": "msc", **DROPS},
    ],
    ids=["train counts", "frozen streamed", "ntxent vit", "msc", "triplet", "label-aware", "memory", "chunks"],
)
def test_other_settings_are_the_same_at_any_size_too(small_dir: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    words = _words(small_dir, tmp_path / "a", train__max_steps=5) | more
    run_in_world(_train, 1, words)
    other = words | {"train.run_dir": str(tmp_path / "b")}
    run_in_world(_train, 3, other, signal_at=(1, 2))  # stopped after two steps, resumed on another number of ranks
    (_, result) = run_in_world(_train, 2, other)
    assert (result["resumed_from"], result["step"]) == (2, 5)
    assert _difference(_state(tmp_path / "a", 5), _state(tmp_path / "b", 5)) < RTOL
    figures = [{k: v for k, v in line.items() if k not in VARYING} for line in _metrics(tmp_path / "a")]
    again = [{k: v for k, v in line.items() if k not in VARYING} for line in _metrics(tmp_path / "b")]
    assert again == [pytest.approx(line, rel=1e-7) for line in figures]


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
@pytest.mark.parametrize("more", [{}, {"loss.name": "msc"}], ids=["macl", "msc"])
def test_recompute_in_chunks_gives_the_gradients_of_one_pass(
    more: dict[str, Any], chunk: int, small_dir: Path, tmp_path: Path
) -> None:
    words = _words(small_dir, tmp_path / "one", train__max_steps=3) | {"model.backbone": "test_vit"} | DROPS | more
    run_in_world(_train, 1, words)
    run_in_world(_train, 2, words | {"train.run_dir": str(tmp_path / "chunks"), "train.chunk": chunk})
    assert _difference(_state(tmp_path / "one", 3), _state(tmp_path / "chunks", 3)) < RTOL


def test_recompute_replays_dropout(small_dir: Path, tmp_path: Path) -> None:
    """The same draws in both passes: the gradient is that of the loss that was computed, chunk by chunk."""
    run_in_world(_replay, 1, _words(small_dir, tmp_path / "run") | {"model.backbone": "test_vit", "train.chunk": 5})


def _replay(words: dict[str, Any]) -> None:
    config = build(Config, words)
    run = setup.Setup(config, True, lambda step, phase: None)
    encoder = run.learner.encoder
    encoder.head = torch.nn.Sequential(torch.nn.Dropout(0.4), *encoder.head).double()
    batch = next(iter(run.loader.epoch(0)))
    with pytest.warns(UserWarning, match=r"depends on the number of ranks and on train.chunk"):
        run.stepper._in_chunks(batch, 0)
    got = [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]
    for parameter in encoder.parameters():
        parameter.grad = None
    projections, keys = [], run.stepper._keys(batch, 0)
    for start in range(0, len(batch.images), 5):  # one graph over all chunks, each drawn with its own seed
        torch.manual_seed(step_seed(config.train.seed, 0, batch.ids, start))
        rows = slice(start, start + 5)
        projections.append(run.stepper._encode(run.learner, batch.images[rows], keys[rows])[0])
    run.stepper._backward(torch.cat(projections), None, batch, 0)
    want = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert len(got) == len(want) > 10
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    run.loader.close()


def test_recompute_refuses_live_batch_norm(small_dir: Path, tmp_path: Path) -> None:
    words = _words(small_dir, tmp_path / "run", train__chunk=4, train__max_steps=1)
    for mode in ("sync", "plain"):
        with pytest.raises(ConfigError, match=r"train.chunk: test_resnet has batch norm.*batch_norm=frozen"):
            trainer.train(build(Config, words | {"model.batch_norm": mode}))
    run_in_world(_train, 1, words | {"model.batch_norm": "frozen"})


def test_single_label_supcon_names_the_sample_with_several(small_dir: Path, tmp_path: Path) -> None:
    words = _words(small_dir, tmp_path / "run", loss__name="supcon_single")
    with pytest.raises(
        ConfigError, match=r"supcon_single: expected one label a sample, but \d+ of \d+ have more.*\.tar: "
    ):
        trainer.train(build(Config, words))
    assert not (tmp_path / "run").exists()


def test_the_run_says_which_implementation_and_what_is_not_read(small_dir: Path, tmp_path: Path) -> None:
    words = _words(small_dir, tmp_path / "run", loss__name="supcon_any", loss__alpha=0.1, train__max_steps=1)
    (result,) = run_in_world(_train, 1, words)
    said = " ".join(result["said"])
    assert "loss supcon_any, streamed (not triton: it needs an NVIDIA GPU" in said
    assert "loss.alpha=0.1: not read beside the other settings (loss supcon_any)" in said


def test_a_batch_too_small_for_partners_is_said(small_dir: Path, tmp_path: Path) -> None:
    words = _words(small_dir, tmp_path / "run", data__sampler="label_aware", train__max_steps=1)
    (result,) = run_in_world(_train, 1, words)
    need = 2 * len(open_dataset(small_dir).classes)
    assert f"a batch of {BATCH} samples may leave some of" in " ".join(result["said"])
    assert f"from train.global_batch={need} on it never does" in " ".join(result["said"])


def test_an_implementation_that_cannot_run_leaves_no_folder(
    small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marc_dist.objective.global_objective.why_not", lambda *_, **__: "no GPU here")
    with pytest.raises(ConfigError, match="loss.implementation=triton: no GPU here; use auto or streamed"):
        trainer.train(build(Config, _words(small_dir, tmp_path / "run", loss__implementation="triton")))
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_same_folder_is_refused(
    whole: tuple[Path, dict[int, list[int]]], small_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = _words(small_dir, whole[0])
    before = (whole[0] / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"optim.lr was 0.05, now 0.1"):
        trainer.train(build(Config, words | {"optim.lr": 0.1}))
    with pytest.raises(LaunchError, match="has checkpoints"):
        trainer.train(build(Config, words), resume=False)
    other = dataclasses.replace(open_dataset(small_dir), fingerprint="f" * 64)
    monkeypatch.setattr(setup, "open_dataset", lambda *_, **__: other)
    with pytest.raises(DataError, match=r"was trained on .* holds .*ffffffffffff"):
        trainer.train(build(Config, words))
    assert (whole[0] / "config.yaml").read_bytes() == before


def _refused(words: dict[str, Any]) -> str:
    try:
        _train(words)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_a_refusal_reaches_every_rank(whole: tuple[Path, dict[int, list[int]]], small_dir: Path) -> None:
    results = run_in_world(_refused, 2, _words(small_dir, whole[0]) | {"optim.lr": 0.1}, limit_s=30)
    assert all("optim.lr was 0.05, now 0.1" in text for text in results)


def test_a_damaged_newest_checkpoint_costs_steps_not_the_run(
    whole: tuple[Path, dict[int, list[int]]], small_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = _words(small_dir, run, train__checkpoint_every=2, train__keep_checkpoints=3)
    run_in_world(_train, 1, words | {"train.max_steps": 6})
    path = checkpoint_path(run, 6)
    path.write_bytes(path.read_bytes()[:-100])
    (result,) = run_in_world(_train, 1, words)
    assert (result["resumed_from"], result["step"]) == (4, STEPS)
    assert "step-00000006.pt: checksum differs; trying the one before" in " ".join(result["said"])
    assert _difference(_state(whole[0], STEPS), _state(run, STEPS)) < RTOL
    assert [line["step"] for line in _metrics(run)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "auto"])
def test_other_precisions_train(precision: str, small_dir: Path, tmp_path: Path) -> None:
    words = _words(small_dir, tmp_path / "run", train__precision=precision, train__max_steps=2)
    run_in_world(_train, 1, words)
    assert _state(tmp_path / "run", 2)["model.head.0.weight"].dtype == torch.float32
    assert all(line["loss"] > 0 for line in _metrics(tmp_path / "run"))


def _die(words: dict[str, Any]) -> None:
    if comm.rank() == 1:
        raise OSError("the disk of rank 1")
    _train(words)


def test_an_error_on_one_rank_does_not_hang_the_test(small_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="the disk of rank 1"):
        run_in_world(_die, 2, _words(small_dir, tmp_path / "run"), limit_s=30)
