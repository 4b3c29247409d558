"""A head on a frozen backbone: kept features in place of pictures, and every promise of an ordinary run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, ConfigError, LaunchError, build
from marc_dist.data.dataset import open_dataset
from marc_dist.data.loader import FixedView, iter_eval
from marc_dist.encoder.export import load_encoder
from marc_dist.encoder.model import build_encoder
from marc_dist.retrieval.evaluate import evaluate
from marc_dist.retrieval.vectors.features import BackboneFeatures, features_root
from marc_dist.run.folder import read_lines
from marc_dist.training import feature_loader
from marc_dist.training.checkpoint import checkpoint_path, load_checkpoint
from marc_dist.training.feature_loader import drop
from marc_dist.training.signals import StopFlag
from marc_dist.training.trainer import train
from tests.training.test_trainer import RTOL, STEPS, STOP_AFTER, _difference, _metrics, _state, _words
from tests.worlds import run_in_world

VIEWS = 2
SCALE = IMAGENET  # as the words of test_trainer say


def words_of(data: Path, run: Path, **more: Any) -> dict[str, Any]:
    frozen = {"model.freeze": "backbone", "data.feature_views": VIEWS, "eval.batch": 8, "model.pretrained": False}
    return {**_words(data, run), **frozen, **{key.replace("__", "."): value for key, value in more.items()}}


class StopAfter(StopFlag):
    """Asks for the end when it was looked at so often."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def go(words: dict[str, Any], stop_after: int | None = None) -> tuple[int, bool, int]:
    """Train on this rank: where it ended, whether it was interrupted, and how many pictures were encoded."""
    encoded = 0
    compute = BackboneFeatures.compute

    def counting(self: BackboneFeatures, images: torch.Tensor) -> Any:
        nonlocal encoded
        encoded += len(images)
        return compute(self, images)

    BackboneFeatures.compute = counting  # type: ignore[method-assign]
    try:
        result = train(build(Config, words), stop=StopFlag() if stop_after is None else StopAfter(stop_after))
    finally:
        BackboneFeatures.compute = compute  # type: ignore[method-assign]
    return result.step, result.interrupted, encoded


@pytest.fixture(scope="module")
def whole(small_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of one process; its features are kept beside it."""
    run = tmp_path_factory.mktemp("frozen") / "one"
    (done,) = run_in_world(go, 1, words_of(small_dir, run))
    rows = len(open_dataset(small_dir).rows("train"))
    assert done == (STEPS, False, rows * (1 + VIEWS))  # each picture once as it is, and once a view
    return run


def same_run(run: Path, whole: Path) -> None:
    difference = _difference(_state(whole, STEPS), _state(run, STEPS))
    assert difference < RTOL, f"relative difference of the weights: {difference:.3e}"
    for line, other in zip(_metrics(run), _metrics(whole), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-7), line["step"]


@pytest.mark.parametrize("size", [2, 3])
def test_more_ranks_compute_the_same_features_and_weights(
    size: int, whole: Path, small_dir: Path, tmp_path: Path
) -> None:
    done = run_in_world(go, size, words_of(small_dir, tmp_path / "run"))
    rows = len(open_dataset(small_dir).rows("train"))
    assert sum(encoded for _, _, encoded in done) == rows * (1 + VIEWS)  # shared out, nothing twice
    for mine, theirs in zip(kept_files(tmp_path / "run"), kept_files(whole), strict=True):
        assert mine.name == theirs.name and mine.read_bytes() == theirs.read_bytes()
    same_run(tmp_path / "run", whole)


def kept_files(run: Path) -> list[Path]:
    files = sorted((run.parent / "features").glob("*/*.npy"))
    assert len(files) == 1 + VIEWS
    return files


def test_a_second_run_encodes_nothing_and_a_stopped_one_goes_on_elsewhere(
    whole: Path, small_dir: Path, tmp_path: Path
) -> None:
    words = words_of(small_dir, tmp_path / "run", data__features_dir=str(whole.parent / "features"))
    first = run_in_world(go, 3, words, stop_after=STOP_AFTER - 1)
    assert first == [(STOP_AFTER, True, 0)] * 3
    assert run_in_world(go, 2, words) == [(STEPS, False, 0)] * 2
    same_run(tmp_path / "run", whole)


def test_the_head_learns_and_the_backbone_is_as_it_was(whole: Path, small_dir: Path) -> None:
    encoder, info = load_encoder(whole)
    before = build_encoder(build(Config, words_of(small_dir, whole)).model, 0, 32).double()
    assert info["freeze"] == "backbone"
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[name], value), name
    assert not torch.equal(encoder.head[0].weight, before.head[0].weight)
    assert set(load_checkpoint(checkpoint_path(whole, STEPS))["model"]) == set(encoder.head.state_dict())
    dataset = open_dataset(small_dir)
    images, _ = next(iter_eval(dataset, dataset.rows("train"), 32, SCALE, 53, 0))
    with torch.no_grad():
        features = encoder.backbone(images.double())
    assert torch.allclose(encoder.head.mean, features.mean(0), atol=1e-6)
    spread = features.std(0, correction=0)
    assert torch.allclose(encoder.head.std[spread > 1e-4], spread[spread > 1e-4], atol=1e-6)


def test_kept_features_are_what_the_backbone_says_of_each_view(whole: Path, small_dir: Path) -> None:
    config, dataset = build(Config, words_of(small_dir, whole)), open_dataset(small_dir)
    encoder = build_encoder(config.model, 0, 32).double().eval()
    kept = BackboneFeatures(encoder, config, dataset, image_size=32, scale=SCALE, say=print)
    rows = dataset.rows("train")
    views = [None, FixedView(config.augment, 0), FixedView(config.augment, 1)]
    clean = kept.clean("train", only_kept=True)
    assert clean is not None
    for store, view in zip([clean, *kept.views("train", VIEWS)], views, strict=True):
        images = torch.cat([images for images, _ in iter_eval(dataset, rows, 32, SCALE, 8, 0, view=view)])
        with torch.no_grad():
            expected = torch.cat([encoder.backbone(part.double()) for part in images.split(8)]).float().numpy()
        assert np.array_equal(np.asarray(store.rows(rows)), expected)
    assert kept.clean("train").made_of(rows) and kept.folder.parent == features_root(config)  # type: ignore[union-attr]


def test_evaluation_takes_kept_features_and_finds_the_same(whole: Path, sample_dir: Path, tmp_path: Path) -> None:
    words = words_of(sample_dir, tmp_path / "run", train__max_steps=3, train__precision="float32", eval__ks=[5])
    del words["train.checkpoint_every"]
    words |= {"train.global_batch": 64, "eval.batch": 64}
    config = build(Config, words)
    train(config)
    said: list[str] = []
    kept = evaluate(config, tmp_path / "run", said.append)
    assert any("150 pictures as they are" in line for line in said)  # the queries: training had encoded the archive
    assert not any("450 pictures" in line for line in said)
    loose = build(Config, {**words, "model.freeze": "none"})  # the same encoder, straight from the pictures
    (tmp_path / "run" / "embeddings").rename(tmp_path / "other")
    assert evaluate(loose, tmp_path / "run", lambda _: None)["scores"] == kept["scores"]


def test_validation_on_kept_features_is_that_on_pictures(small_dir: Path, tmp_path: Path) -> None:
    words = words_of(small_dir, tmp_path / "a", data__validation_share=0.3, train__epochs=2, train__precision="float32")
    del words["train.max_steps"]
    train(build(Config, words))
    found = read_lines(tmp_path / "a" / "validation.jsonl")
    assert [line["epoch"] for line in found] == [1, 2]
    from marc_dist.training.validation.scores import validate

    config, dataset = build(Config, words), open_dataset(small_dir)
    loader = feature_loader.FeatureLoader(build_encoder(config.model, 0, 32), dataset, config, SCALE, print)
    seen = loader.features(dataset.train_rows(config.data))  # the head begins with what training sees, no more
    assert np.allclose(load_encoder(tmp_path / "a")[0].head.mean, seen.mean(axis=0), atol=1e-6)
    again = validate(load_encoder(tmp_path / "a")[0], open_dataset(small_dir), config, lambda: None)
    assert {name: found[-1][name] for name in again} == pytest.approx(again, abs=1e-6)


def test_runs_of_one_time_compute_features_once(small_dir: Path, tmp_path: Path) -> None:
    """Two processes without a common world: one computes, the other waits and reads."""
    from tests.worlds import fork_server

    context = fork_server()
    queue = context.SimpleQueue()
    both = [context.Process(target=_alone, args=(words_of(small_dir, tmp_path / name), queue)) for name in ("a", "b")]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    rows = len(open_dataset(small_dir).rows("train"))
    assert sorted(queue.get() for _ in both) == [0, rows * (1 + VIEWS)]
    assert _difference(_state(tmp_path / "a", STEPS), _state(tmp_path / "b", STEPS)) == 0


def _alone(words: dict[str, Any], queue: Any) -> None:
    torch.set_num_threads(1)
    compute = BackboneFeatures.compute
    slow = BackboneFeatures.compute = lambda self, images: (time.sleep(0.05), compute(self, images))[1]  # type: ignore[method-assign]
    assert slow is not None
    queue.put(go(words)[2])


def test_other_weights_are_refused_when_a_run_goes_on(small_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    words = words_of(small_dir, tmp_path / "run")
    first, second = (build_encoder(build(Config, words).model, seed, 32).backbone.state_dict() for seed in (1, 2))
    save_file(first, tmp_path / "weights.safetensors")
    words |= {"model.weights": str(tmp_path / "weights.safetensors")}
    assert go(words, stop_after=2)[:2] == (3, True)
    save_file(second, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match="frozen backbone has other weights than when the run began"):
        go(words)
    save_file(first, tmp_path / "weights.safetensors")
    assert go(words)[:2] == (STEPS, False)


def test_a_damaged_part_is_computed_again(small_dir: Path, tmp_path: Path) -> None:
    words = words_of(small_dir, tmp_path / "run")
    go(words)
    one, *rest = kept_files(tmp_path / "run")
    sound = one.read_bytes()
    one.write_bytes(sound[:-8] + b"12345678")
    rows = len(open_dataset(small_dir).rows("train"))
    assert go({**words, "train.run_dir": str(tmp_path / "next")})[2] == rows
    assert one.read_bytes() == sound


def test_a_features_dir_that_cannot_be_written_is_one_line(small_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = words_of(small_dir, tmp_path / "run", data__features_dir=str(tmp_path / "file" / "features"))
    with pytest.raises(LaunchError, match=r"features.*cannot be written .*set data.features_dir"):
        go(words)


def test_views_are_drawn_by_sample_and_dropout_by_number() -> None:
    rows = np.ones((400, 50), dtype=np.float32)
    ids = np.arange(400) * 7
    drop(rows, ids, 0.25, (0, 0, "drop", 0))
    assert set(np.unique(rows)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((rows == 0).mean() - 0.25) < 0.01 and (rows == 0).any(axis=0).all() and (rows == 0).any(axis=1).all()
    part = np.ones((3, 50), dtype=np.float32)
    drop(part, ids[[9, 0, 30]], 0.25, (0, 0, "drop", 0))
    assert np.array_equal(part, rows[[9, 0, 30]])  # whatever else is in the batch
    other = np.ones((400, 50), dtype=np.float32)
    drop(other, ids, 0.25, (0, 1, "drop", 0))
    assert not np.array_equal(other, rows)
    untouched = np.ones((4, 50), dtype=np.float32)
    drop(untouched, ids[:4], 0.0, ())
    assert (untouched == 1).all()


def test_two_views_of_a_sample_are_of_two_parts(whole: Path, small_dir: Path) -> None:
    words = words_of(small_dir, whole, augment__feature_dropout=0.0, data__num_views=VIEWS + 1)
    config, dataset = build(Config, words), open_dataset(small_dir)
    encoder = build_encoder(config.model, 0, 32).double()
    loader = feature_loader.FeatureLoader(encoder, dataset, config, SCALE, print)
    seen = set()
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            views = batch.images.unflatten(0, (VIEWS + 1, -1)).transpose(0, 1).numpy()
            for sample, vectors in zip(batch.ids.numpy(), views, strict=True):
                parts = [loader.features(np.array([sample]), part)[0] for part in range(VIEWS + 1)]
                order = [next(at for at, one in enumerate(parts) if np.array_equal(one, vector)) for vector in vectors]
                assert sorted(order) == list(range(VIEWS + 1))
                seen.add(tuple(order))
    assert len(seen) == 6  # every order comes up


def test_frozen_parts_keep_weights_and_statistics(small_dir: Path, tmp_path: Path) -> None:
    words = words_of(small_dir, tmp_path / "run", model__freeze=["conv1", "bn1", "layer1.0"], train__max_steps=3)
    before = build_encoder(build(Config, words).model, 0, 32).double().backbone.state_dict()
    train(build(Config, words))
    after = load_encoder(tmp_path / "run")[0].backbone.state_dict()
    for name, value in before.items():
        frozen = name.startswith(("conv1.", "bn1.", "layer1.0."))
        assert torch.equal(value, after[name]) == (frozen or not value.is_floating_point() and frozen), name


def test_features_that_say_nothing_of_the_training_pictures_do_not_outweigh_the_others() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(2.0, 0.5, (200, 6)).astype(np.float32)
    rows[:, 1], rows[:, 4] = 0.0, 3.0  # dead, and constant: other pictures may differ there
    mean, std = feature_loader._moments(lambda ids: rows[ids], np.arange(200))
    varied = [0, 2, 3, 5]
    assert np.allclose(mean, rows.mean(axis=0), atol=1e-5) and np.allclose(std[varied], rows[:, varied].std(axis=0))
    assert np.allclose(std[[1, 4]], np.median(rows[:, varied].std(axis=0)), rtol=1e-5)
    constant = feature_loader._moments(lambda ids: np.ones((3, 2), dtype=np.float32), np.arange(3))
    assert constant[1].tolist() == [1.0, 1.0]


def test_a_checkpoint_of_a_head_without_moments_is_read(small_dir: Path, tmp_path: Path) -> None:
    """Runs that began before heads had a mean and a deviation."""
    encoder = build_encoder(build(Config, words_of(small_dir, tmp_path)).model, 0, 32)
    old = {name: value for name, value in encoder.state_dict().items() if name not in ("head.mean", "head.std")}
    other = build_encoder(build(Config, words_of(small_dir, tmp_path)).model, 1, 32)
    other.load_state_dict(old)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in encoder.state_dict().items())


def _without_locks(words: dict[str, Any]) -> str:
    import errno
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    fcntl.flock = refuse  # type: ignore[assignment]
    with pytest.raises(LaunchError) as told:
        go(words)
    return str(told.value)


def test_a_file_system_without_locks_is_told_on_all_ranks(small_dir: Path, tmp_path: Path) -> None:
    told = run_in_world(_without_locks, 2, words_of(small_dir, tmp_path / "run"))
    assert told[0] == told[1] and "this file system has no locks (Function not implemented); set data.feat" in told[0]


def test_other_batches_keep_features_of_their_own(whole: Path, small_dir: Path, tmp_path: Path) -> None:
    """They round otherwise: neither may remove the other's."""
    words = words_of(small_dir, tmp_path / "a", train__max_steps=1)
    go(words)
    go({**words, "train.run_dir": str(tmp_path / "b"), "eval.batch": 5})
    assert go({**words, "train.run_dir": str(tmp_path / "c")})[2] == 0


def test_evaluation_does_without_a_features_folder_that_cannot_be_written(sample_dir: Path, tmp_path: Path) -> None:
    words = words_of(sample_dir, tmp_path / "run", train__max_steps=1, train__precision="float32", eval__ks=[5])
    words |= {"train.global_batch": 64, "eval.batch": 64, "eval.baseline": False}
    train(build(Config, words))
    (tmp_path / "file").write_text("")
    said: list[str] = []
    config = build(Config, {**words, "data.features_dir": str(tmp_path / "file" / "features")})
    assert evaluate(config, tmp_path / "run", said.append)["scores"]
    assert any("are not kept" in line and "set data.features_dir" in line for line in said)


def test_settings_that_kept_features_leave_unread_are_named() -> None:
    frozen = {"model.freeze": "backbone", "augment.crop_min": 0.5, "model.batch_norm": "plain", "data.cache": "none"}
    assert build(Config, frozen).unread() == ["data.cache", "model.batch_norm", "augment.crop_min"]
    assert build(Config, {**frozen, "data.feature_views": 2}).unread() == ["data.cache", "model.batch_norm"]
    assert build(Config, {"data.feature_views": 2, "augment.feature_dropout": 0.2}).unread() == [
        "data.feature_views", "augment.feature_dropout"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"model.freeze": ["conv1", "blocks.9"]},
            r"model.freeze: the backbone has no part 'blocks.9'; it has conv1, bn1,",
        ),
        ({"data.reader": "streamed"}, r"model.freeze=backbone keeps the features of every picture"),
        ({"data.on_error": "skip"}, r"data.on_error=skip cannot leave one out; use data.on_error=stop"),
        ({"eval.features": "hidden", "model.head_hidden": 0}, r"model.head_hidden=0 has no hidden layer"),
        ({"model.freeze": "head"}, r"model.freeze"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: dict[str, Any], message: str, small_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(build(Config, {**words_of(small_dir, tmp_path / "run"), **words}))


def test_a_stored_run_says_what_it_searches(whole: Path) -> None:
    assert json.loads((whole / "encoder.json").read_text())["freeze"] == "backbone"


def test_a_run_may_fix_its_threads(small_dir: Path, tmp_path: Path) -> None:
    """float32 rounds in an order that depends on threads; with their number set, a launcher's does not count."""
    before = torch.get_num_threads()
    try:
        for name, given in (("a", 1), ("b", 2)):
            torch.set_num_threads(given)
            words = words_of(
                small_dir, tmp_path / name, train__threads=1, train__precision="float32", model__freeze="none"
            )
            go({**words, "train.max_steps": 4})
            assert torch.get_num_threads() == 1
        a, b = (load_checkpoint(checkpoint_path(tmp_path / name, 4))["model"] for name in "ab")
        assert all(torch.equal(value, b[key]) for key, value in a.items())
    finally:
        torch.set_num_threads(before)
