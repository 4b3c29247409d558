"""Streamed batches: every sample once, the same steps on any number of ranks and workers, nothing missing unsaid."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, ConfigError, DataError, build
from marc_dist.data.batches import Batch
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.loader import TrainLoader
from marc_dist.data.remote import TarStream, shard_urls
from marc_dist.data.stream import StreamLoader
from marc_dist.data.stream_order import Lanes, alike, pair_rate
from marc_dist.training.trainer import train
from tests.training.test_trainer import _difference, _state
from tests.worlds import run_in_world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in sample in twelve training shards."""
    from marc_dist.cli.shard import main

    out = tmp_path_factory.mktemp("streamed") / "sample"
    assert main(["--dataset", "sample", "--out", str(out), "--workers", "1", "--samples-per-shard", "40"]) == 0
    return out


@pytest.fixture(scope="module")
def dataset(packed: Path) -> Dataset:
    return open_dataset(packed)


def config(packed: Path, **more: Any) -> Config:
    words = {"dir": str(packed), "reader": "streamed", "image_size": 16, "num_workers": 0, "lanes": 5, "shuffle": 30}
    words |= {"retries": 0} | {key: value for key, value in more.items() if "." not in key}
    rest = {key: value for key, value in more.items() if "." in key}
    return build(Config, {**{f"data.{key}": value for key, value in words.items()}, "train.global_batch": 64, **rest})


def batches(
    dataset: Dataset, settings: Config, epoch: int, rank: int = 0, world: int = 1, start: int = 0
) -> list[Batch]:
    loader = StreamLoader(dataset, settings, rank, world, IMAGENET, CPU)
    try:
        return list(loader.epoch(epoch, start))
    finally:
        loader.close()


@pytest.fixture(scope="module")
def reference(dataset: Dataset, packed: Path) -> list[Batch]:
    return batches(dataset, config(packed), 1)


def test_an_epoch_has_every_sample_once_in_steps_of_one_size(dataset: Dataset, reference: list[Batch]) -> None:
    ids = torch.cat([batch.ids for batch in reference]).tolist()
    assert sorted(ids) == dataset.rows("train").tolist() and ids != sorted(ids)
    assert len(reference) == -(-450 // 64)
    for batch in reference:
        assert len(batch.ids) == batch.global_size and abs(batch.global_size - 450 / len(reference)) < 5
        assert torch.equal(batch.labels, torch.from_numpy(dataset.labels[batch.ids.numpy()]))
        assert {"read", "decode", "augment"} == set(batch.seconds)


def test_epochs_differ(dataset: Dataset, packed: Path, reference: list[Batch]) -> None:
    assert batches(dataset, config(packed), 0)[0].ids.tolist() != reference[0].ids.tolist()


def test_pictures_are_the_indexed_reader_s(dataset: Dataset, packed: Path, reference: list[Batch]) -> None:
    loader = TrainLoader(dataset, config(packed, reader="indexed", lanes=8, shuffle=1000), 0, 1, IMAGENET)
    views: dict[int, torch.Tensor] = {}
    for batch in loader.epoch(1):
        views |= dict(zip(batch.ids.tolist(), batch.images.unflatten(0, (2, -1)).unbind(1), strict=True))
    for batch in reference:
        assert torch.equal(batch.images, torch.stack([views[i] for i in batch.ids.tolist()], dim=1).flatten(0, 1))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ranks_and_workers_do_not_change_a_bit(
    dataset: Dataset, packed: Path, reference: list[Batch], world: int, workers: int
) -> None:
    """Five lanes: of eight ranks, three stay idle. Odd ranks enter the epoch late."""
    settings = config(packed, num_workers=workers)
    ranks = [batches(dataset, settings, 1, rank, world, start=rank % 2) for rank in range(world)]
    for step, expected in enumerate(reference[1:], start=1):
        parts = [next(batch for batch in found if batch.step == step) for found in ranks]
        assert torch.cat([part.ids for part in parts]).tolist() == expected.ids.tolist()
        assert {part.global_size for part in parts} == {expected.global_size}
        images = torch.cat([part.images.unflatten(0, (2, len(part.ids))) for part in parts if len(part.ids)], dim=1)
        assert torch.equal(images.flatten(0, 1), expected.images)
    assert world < 8 or all(len(batch.ids) == 0 and batch.images.shape == (0, 3, 16, 16) for batch in ranks[7])


def test_the_device_that_trains_augments_to_the_same_bits(
    dataset: Dataset, packed: Path, reference: list[Batch]
) -> None:
    for batch, expected in zip(batches(dataset, config(packed, augment_on="device"), 1), reference, strict=True):
        assert torch.equal(batch.images, expected.images)


def test_leaving_early_and_coming_back(dataset: Dataset, packed: Path, reference: list[Batch]) -> None:
    loader = StreamLoader(dataset, config(packed, num_workers=2), 0, 1, IMAGENET, CPU)
    next(iter(loader.epoch(0)))
    again = list(loader.epoch(1))
    loader.close()
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, reference, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_within_another_epoch(dataset: Dataset, packed: Path, reference: list[Batch], workers: int) -> None:
    """A lane that stands early in one epoch is not the one that is asked for later in another."""
    loader = StreamLoader(dataset, config(packed, num_workers=workers), 0, 1, IMAGENET, CPU)
    next(iter(loader.epoch(0)))
    again = list(loader.epoch(1, 3))
    loader.close()
    assert [batch.ids.tolist() for batch in again] == [batch.ids.tolist() for batch in reference[3:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, reference[3:], strict=True))


# How good a shuffle is


def test_the_rate_of_pairs_counts_pairs() -> None:
    draw = random.Random(0)
    groups = np.array([draw.randrange(5) for _ in range(60)])
    steps = np.array([draw.randrange(4) for _ in range(60)])
    every = np.concatenate([groups, groups[:13]])

    def same(values: np.ndarray[Any, Any]) -> list[bool]:
        return [a == b for a, b in itertools.combinations(values.tolist(), 2)]

    within = [pair for step in range(4) for pair in same(groups[steps == step])]
    expected = np.mean(within) / np.mean(same(every))
    assert pair_rate(groups, steps, every) == pytest.approx(expected)


def test_no_shuffle_is_told_from_a_good_one() -> None:
    """A sorted archive: 2,000 samples, 40 scenes, 20 shards."""
    scene = [f"scene {i // 50}" for i in range(2000)]
    samples = {shard: np.arange(shard * 100, shard * 100 + 100) for shard in range(20)}
    groups, what = alike(scene, samples)
    assert what == "same-scene pairs"
    rates = {}
    for lanes, buffer in ((1, 1), (8, 100), (20, 2000)):
        ids, steps = Lanes(samples, lanes, buffer, 50, seed=0, fingerprint="f").order(0)
        assert sorted(ids.tolist()) == list(range(2000))
        rates[lanes] = pair_rate(groups[ids], steps, groups)
    assert rates[1] > 15 and 1.2 < rates[8] < 6 and 0.6 < rates[20] < 1.5
    assert alike([""] * 2000, samples)[1] == "pairs from the same 64 consecutive samples of a shard"


def test_lanes_give_each_step_its_share() -> None:
    samples = {shard: np.arange(shard * 100, shard * 100 + 7 * shard + 1) for shard in range(9)}
    lanes = Lanes(samples, 4, 10, 25, seed=3, fingerprint="f")
    sizes = [lanes.step_size(2, step) for step in range(lanes.steps)]
    assert sum(sizes) == lanes.num_samples and max(sizes) - min(sizes) < 2 * lanes.num
    assert sorted(itertools.chain.from_iterable(lanes.deal(2))) == list(range(9)) and lanes.deal(2) != lanes.deal(3)
    assert Lanes(samples, 99, 10, 25, seed=3, fingerprint="f").num == 9
    assert Lanes(samples, 99, 10, 2, seed=3, fingerprint="f").num == 2  # no step without a sample


def test_what_a_run_says(dataset: Dataset, packed: Path) -> None:
    loader = StreamLoader(dataset, config(packed), 0, 9, IMAGENET, CPU)
    assert "12 shards in 5 lanes" in loader.notes[0]
    assert "as often as after an exact shuffle (data.lanes=5, data.shuffle=30)" in loader.notes[1]
    assert "4 of 9 ranks have no lane" in loader.notes[2]


# Where tars come from


@pytest.fixture(scope="module")
def away(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a person copies of a data set whose tars are elsewhere."""
    out = tmp_path_factory.mktemp("away") / "sample"
    out.mkdir()
    for name in ("dataset.json", "index.parquet"):
        shutil.copy(packed / name, out / name)
    return out


@pytest.fixture(scope="module")
def server(packed: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(packed))) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["glob", "braces", "pipe", "http"])
def test_tars_from_elsewhere(packed: Path, away: Path, reference: list[Batch], server: str, kind: str) -> None:
    urls = {
        "glob": [f"{packed}/*.tar"],  # the test split's, too
        "braces": [f"{packed}/train-{{000000..000011}}.tar"],
        "pipe": [f"pipe:cat {packed}/train-{{000000..000011}}.tar | cat"],
        "http": [f"{server}/train-{{000000..000011}}.tar"],
    }[kind]
    with pytest.raises(DataError, match="no such file"):
        open_dataset(away)
    found = batches(open_dataset(away, shards=False), config(away, urls=urls), 1)
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, reference, strict=True))


def test_other_places_go_through_their_commands(
    dataset: Dataset, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the vendor's command, on the path; a space does not split the place."""
    asked = '"$1 $2 $3 $4" = "s3 cp s3://b/a b/train-000000.tar -"'
    (tmp_path / "aws").write_text(f"#!/bin/sh\n[ {asked} ] && cat {packed}/train-000000.tar\n")
    (tmp_path / "aws").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    url = shard_urls(config(packed, urls=["s3://b/a b/train-{000000..000011}.tar"]), dataset, [0])[0]
    stream = TarStream(url, 10**9, 10)
    assert stream.read(512) == (packed / "train-000000.tar").read_bytes()[:512]
    stream.close()


def test_commands_keep_their_braces_and_paths_their_signs(dataset: Dataset, packed: Path, tmp_path: Path) -> None:
    command = r"pipe:awk '{print $1,$2}' x; sed s/\./,/ y; cat "
    urls = shard_urls(config(packed, urls=[command + "train-{000000..000011}.tar"]), dataset, [3])
    assert urls == {3: command + "train-000003.tar"}
    (tmp_path / "a#b?c").mkdir()
    shutil.copy(packed / "train-000000.tar", tmp_path / "a#b?c")
    found = shard_urls(config(packed, urls=[f"{tmp_path}/a#b*/*.tar"]), dataset, [0])
    assert found == {0: str(tmp_path / "a#b?c" / "train-000000.tar")}


def test_a_file_s_name_is_never_a_command(
    dataset: Dataset, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(packed / "train-000000.tar", tmp_path / "train-000000.tar")
    (tmp_path / "pipe:touch HARM; cat train-000001.tar").touch()
    with pytest.raises(ConfigError, match="expected the name of one shard"):
        StreamLoader(dataset, config(packed, urls=["*train-00000*.tar"]), 0, 1, IMAGENET, CPU)
    assert shard_urls(config(packed, urls=["train-*.tar"]), dataset, [0]) == {0: str(tmp_path / "train-000000.tar")}
    assert not (tmp_path / "HARM").exists()


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (["{}/nothing-*.tar"], "nothing-.*: no such file"),
        (["{}/train-000000.tar"], "expected one for each of 12 shards of train, got none for 11 of them"),
        (["{}/train-*.tar", "pipe:cat {}/train-000003.tar"], "train-000003.tar: expected one place, got two"),
        (
            ["https://host/other.tar"],
            "entry 1, https://host/other.tar: expected the name of one shard of sample, got none",
        ),
        (["ftp://host/train-000000.tar"], r"ftp://: expected a path, https://, .* or pipe:COMMAND"),
        (["pipe:cat {0}/train-000003.tar {0}/train-000004.tar"], "got train-000003.tar and train-000004.tar"),
    ],
)
def test_urls_that_do_not_fit(packed: Path, dataset: Dataset, urls: list[str], message: str) -> None:
    settings = config(packed, urls=[url.format(packed) for url in urls])
    with pytest.raises(ConfigError, match=message):
        StreamLoader(dataset, settings, 0, 1, IMAGENET, CPU)


def test_settings_that_do_not_go_together(packed: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"label_aware chooses samples, but data.reader=streamed takes them as they come"
    ):
        config(packed, sampler="label_aware")
    assert config(packed, cache="none").unread() == ["data.cache"]
    assert config(packed, reader="indexed", urls=["a"]).unread() == ["data.urls", "data.lanes", "data.shuffle"]


# What breaks


def running(mark: str) -> set[int]:
    """Processes with this word on their command line."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found |= {int(path.parent.name)} if mark.encode() in path.read_bytes().split(b"\0") else set()
    return found


def gone(mark: str, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(mark)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_command_is_left_behind(packed: Path, dataset: Dataset, workers: int) -> None:
    """A pipeline whose first part never ends by itself."""
    command = f"pipe:(sleep 60{workers}1 & cat {packed}/train-{{000000..000011}}.tar; wait) | cat"
    loader = StreamLoader(dataset, config(packed, num_workers=workers, urls=[command], shuffle=1), 0, 1, IMAGENET, CPU)
    next(iter(loader.epoch(0)))
    assert running(f"60{workers}1")
    loader.close()
    assert gone(f"60{workers}1")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_stalls_is_named_in_time(packed: Path, dataset: Dataset, workers: int) -> None:
    command = f"pipe:head -c 100000 {packed}/train-{{000000..000011}}.tar; exec sleep 70{workers}1"
    settings = config(packed, num_workers=workers, urls=[command], retries=1, **{"train.timeout_s": 4.0})
    start = time.monotonic()
    expected = r"a pipe: command for train-\d+.tar: \w+: did not arrive: no bytes for 1 s \(2 tries\)"
    with pytest.raises(DataError, match=expected):
        batches(dataset, settings, 0)
    assert time.monotonic() - start < 15
    assert gone(f"70{workers}1")


def test_closed_while_it_stalls(packed: Path, dataset: Dataset) -> None:
    command = f"pipe:head -c 250000 {packed}/train-{{000000..000011}}.tar; exec sleep 8001"
    loader = StreamLoader(dataset, config(packed, num_workers=1, urls=[command], shuffle=1), 0, 1, IMAGENET, CPU)
    found = loader.epoch(0)
    next(found)
    time.sleep(0.5)  # the worker runs ahead, into the wait
    loader.close()
    assert gone("8001")


def test_no_stream_fills_the_memory(packed: Path, tmp_path: Path) -> None:
    whole = (packed / "train-000000.tar").read_bytes()
    for name, content, message in (
        ("long", whole + bytes(10**6), "longer than the shard that dataset.json lists"),
        ("packed", gzip.compress(whole), "compressed, expected a plain tar"),
    ):
        (tmp_path / name).write_bytes(content)
        stream = TarStream(str(tmp_path / name), len(whole), 10)
        with pytest.raises(DataError, match=message):
            while stream.read(1 << 16):
                pass
        stream.close()


def test_secrets_stay_out_of_messages(packed: Path, dataset: Dataset, server: str) -> None:
    url = server.replace("http://", "http://me:SECRET@") + "/nowhere/train-{000000..000011}.tar?key=SECRET"
    expected = r"^http://127.0.0.1/nowhere/train-\d+.tar: \w+: did not arrive: its command ended with exit code 22"
    with pytest.raises(DataError, match=expected) as told:
        batches(dataset, config(packed, urls=[url]), 0)
    assert "SECRET" not in str(told.value)


def broken(packed: Path, tmp_path: Path, harm: str) -> tuple[list[str], str]:
    """URLs of which one breaks, and the shard's name."""
    name = "train-000004.tar"
    content = (packed / name).read_bytes()
    place = content.index(b"\xff\xd8") if b"\xff\xd8" in content else content.index(b"PNG")
    bad = {
        "cut": content[: len(content) // 2],
        "cut at a member": content[: 512 * 40],
        "flipped": content[: place + 300] + bytes(64) + content[place + 364 :],
        "empty": b"",
        "gap": without_third(packed / name),
        "other": (packed / "train-000005.tar").read_bytes(),
    }.get(harm, content)
    (tmp_path / name).write_bytes(bad)
    others = [f"{packed}/train-{number:06d}.tar" for number in range(12) if number != 4]
    return [*others, f"{server_gone()}/{name}" if harm == "refused" else f"{tmp_path}/{name}"], name


def without_third(path: Path) -> bytes:
    """A tar that lacks the third of its samples."""
    buffer = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as new:
        members = old.getmembers()
        third = members[4].name.split(".")[0]
        for member in members:
            if member.name.split(".")[0] != third:
                new.addfile(member, old.extractfile(member))
    return buffer.getvalue()


def server_gone() -> str:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as made:
        port = made.server_port
    return f"pipe:curl -sf http://127.0.0.1:{port}"


@pytest.mark.parametrize("harm", ["cut", "cut at a member", "flipped", "gap", "empty", "refused"])
def test_what_does_not_arrive_is_named_or_left_out(packed: Path, dataset: Dataset, tmp_path: Path, harm: str) -> None:
    urls, name = broken(packed, tmp_path, harm)
    with pytest.raises(DataError, match=rf"{name}: \w+: (did not arrive: |expected CRC-32)"):
        batches(dataset, config(packed, urls=urls), 0)
    found = batches(dataset, config(packed, urls=urls, on_error="skip"), 0)
    good = torch.cat([batch.ids for batch in found]).tolist()
    bad = [sample for batch in found for sample, _ in batch.bad]
    inside = np.flatnonzero((dataset.shard == dataset.shards.index(name)) & (dataset.split == "train")).tolist()
    assert Counter(good + bad) == Counter(dataset.rows("train").tolist())
    assert (
        set(bad) <= set(inside)
        and len(bad) == {"flipped": 1, "gap": 1, "empty": 40, "refused": 40}.get(harm, len(bad)) > 0
    )
    assert sum(batch.global_size for batch in found) == 450


def test_another_tar_of_that_name(packed: Path, dataset: Dataset, tmp_path: Path) -> None:
    urls, name = broken(packed, tmp_path, "other")
    with pytest.raises(DataError, match=rf"{name}: \w+: did not arrive: \w+ is not in the index"):
        batches(dataset, config(packed, urls=urls), 0)


def test_a_stream_that_breaks_once_is_read_again(
    packed: Path, dataset: Dataset, reference: list[Batch], tmp_path: Path
) -> None:
    """Half of a shard, then an end: the second try goes on behind what was given."""
    whole = packed / "train-000004.tar"
    mark = tmp_path / "tried"
    size = whole.stat().st_size // 2
    command = f"pipe:if [ -e {mark} ]; then cat {whole}; else touch {mark}; head -c {size} {whole}; fi"
    urls = [*(f"{packed}/train-{number:06d}.tar" for number in range(12) if number != 4), command]
    found = batches(dataset, config(packed, urls=urls, retries=1), 1)
    assert mark.exists()
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, reference, strict=True))


# A whole run


def _run(words: dict[str, Any]) -> int:
    return train(build(Config, words)).step


@pytest.mark.parametrize("world", [2, 3])
def test_a_run_has_the_same_weights_at_any_size_and_after_a_stop(packed: Path, tmp_path: Path, world: int) -> None:
    words: dict[str, Any] = {"data.dir": str(packed), "data.reader": "streamed", "data.lanes": 5, "data.shuffle": 30}
    words |= {
        "data.image_size": 32,
        "data.num_workers": 0,
        "model.backbone": "test_resnet",
        "model.pretrained": False,
        "model.head_hidden": 16,
    }
    words |= {"model.head_dim": 8, "optim.name": "sgd", "optim.lr": 0.05, "train.epochs": 2, "train.global_batch": 64}
    words |= {"train.device": "cpu", "train.precision": "float64", "train.max_steps": 11}
    run_in_world(_run, 1, words | {"train.run_dir": str(tmp_path / "one")})
    other = words | {"train.run_dir": str(tmp_path / "other")}
    run_in_world(_run, world, other | {"train.max_steps": 9})  # in the middle of the second epoch
    assert run_in_world(_run, 1 + world % 2, other) == [11] * (1 + world % 2)
    assert _difference(_state(tmp_path / "one", 11), _state(tmp_path / "other", 11)) < 1e-9


@contextlib.contextmanager
def slow_server(packed: Path, lasts_s: float) -> Iterator[str]:
    """Hands every file out in parts, over ``lasts_s`` seconds."""

    class Slow(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def copyfile(self, source: Any, outputfile: Any) -> None:
            data = source.read()
            for at in range(20):
                outputfile.write(data[len(data) * at // 20 : len(data) * (at + 1) // 20])
                time.sleep(lasts_s / 20)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=str(packed))) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/train-{{000000..000011}}.tar"
        made.shutdown()


def test_what_arrives_in_a_loader_process_is_told(packed: Path, away: Path) -> None:
    """A watchdog in the main process hears of it long before the batch is there."""
    told: list[tuple[int, str]] = []
    with slow_server(packed, 4.0) as url:
        settings = config(away, urls=[url], lanes=1, shuffle=38, num_workers=1)
        loader = StreamLoader(
            open_dataset(away, shards=False), settings, 0, 1, IMAGENET, CPU, lambda *at: told.append(at)
        )
        try:
            next(iter(loader.epoch(0)))
        finally:
            loader.close()
    assert len(told) >= 3 and set(told) == {(1, "loading")}


@pytest.mark.slow
def test_a_slow_stream_is_progress(packed: Path, away: Path, tmp_path: Path) -> None:
    """The first batch takes twice ``train.timeout_s``, because a shuffle buffer fills; samples arrive meanwhile."""
    timeout_s = 6.0
    with slow_server(packed, 2 * timeout_s) as url:
        words = [
            f"data.dir={away}", f'data.urls=["{url}"]', "data.reader=streamed", "data.lanes=1", "data.shuffle=38",
            "data.retries=0", "data.num_workers=0", "data.image_size=32", "model.backbone=test_resnet",
            "model.pretrained=false", "train.global_batch=4", "train.max_steps=1", "train.device=cpu",
            f"train.timeout_s={timeout_s}", f"train.run_dir={tmp_path / 'run'}",
        ]  # fmt: skip
        command = [sys.executable, "-m", "marc_dist.cli.train", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
