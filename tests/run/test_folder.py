"""Which settings a run may change, atomic files, and logs cut at the resumed step."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from marc_dist.config import Config, ConfigError, LaunchError, build, flatten, load_config
from marc_dist.run.folder import (
    HARMLESS,
    plain_settings,
    prepare,
    refuse_changes,
    truncate_lines,
    write_atomic,
    write_config,
)
from marc_dist.run.settings import placed


def _config(**changes: Any) -> Config:
    return build(Config, {key.replace("__", "."): value for key, value in changes.items()})


def test_harmless_keys_exist() -> None:
    assert set(flatten(Config())) >= HARMLESS


def test_settings_that_change_the_run_are_named_with_both_values() -> None:
    before = plain_settings(_config())
    with pytest.raises(ConfigError, match=r"runs/a: .*optim.lr was 0.001, now 0.01; train.seed was 0, now 4"):
        refuse_changes(before, _config(optim__lr=0.01, train__seed=4), "runs/a")
    harmless = _config(
        train__max_steps=3, train__device="cpu", data__num_workers=0, data__dir="x", eval__ks=[5], train__log_every=1
    )
    refuse_changes(before, harmless, "runs/a")


def test_a_setting_that_the_old_run_did_not_know_had_its_default() -> None:
    before = plain_settings(Config())
    del before["augment.blur"], before["train.ema"]
    refuse_changes(before, Config(), "runs/a")
    with pytest.raises(ConfigError, match=r"train\.ema was None, now 0\.9"):
        refuse_changes(before, build(Config, {"train.ema": 0.9}), "runs/a")


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({"batch_norm": "sync", "pretrained": False}, {"pretrained": False}, True),
        ({"batch_norm": "frozen"}, {}, True),
        ({"batch_norm": "sync"}, {}, False),
        ({"batch_norm": "sync", "freeze": "backbone"}, {"freeze": "backbone"}, True),
        ({"batch_norm": "sync", "freeze": ["conv_stem"]}, {"freeze": ["conv_stem"]}, False),
    ],
)
def test_batch_norms_that_do_the_same_are_no_change(before: dict[str, Any], now: dict[str, Any], same: bool) -> None:
    old, new = (build(Config, {f"model.{key}": value for key, value in words.items()}) for words in (before, now))
    with nullcontext() if same else pytest.raises(ConfigError, match=r"model\.batch_norm was 'sync', now 'auto'"):
        refuse_changes(plain_settings(old), new, "runs/a")


def test_epochs_may_grow() -> None:
    refuse_changes(plain_settings(build(Config, {"train.epochs": 3})), build(Config, {"train.epochs": 4}), "runs/a")
    with pytest.raises(ConfigError, match=r"train\.epochs was 4, now 3"):
        refuse_changes(plain_settings(build(Config, {"train.epochs": 4})), build(Config, {"train.epochs": 3}), "runs/a")


def test_prepare_writes_a_run_file_and_refuses_another_run(tmp_path: Path) -> None:
    run = str(tmp_path / "a")
    prepare(_config(train__run_dir=run, optim__lr=0.5))
    prepare(_config(train__run_dir=run))  # nothing trained yet: any change is fine
    assert load_config(Path(run) / "config.yaml") == placed(_config(train__run_dir=run))
    (tmp_path / "a" / "checkpoints").mkdir()
    (tmp_path / "a" / "checkpoints" / "step-00000001.pt").touch()
    with pytest.raises(ConfigError, match="optim.lr was 0.001, now 0.5"):
        prepare(_config(train__run_dir=run, optim__lr=0.5))
    prepare(_config(train__run_dir=run, train__max_steps=9))
    assert load_config(Path(run) / "config.yaml").train.max_steps == 9


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="cannot be written"):
        write_config(_config(train__run_dir=str(tmp_path / "file" / "run")))


def test_write_atomic_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_lines_after_the_step_and_torn_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    truncate_lines(path, 3)
    assert not path.exists()
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 3, 5)) + '{"step": 2')
    truncate_lines(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
