"""One grammar: YAML, words and layers meet in one validated configuration, and every fault is one clear line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from marc_dist.config import Config, ConfigError, build, dump_yaml, flatten, load_config, load_yaml, parse_words
from marc_dist.config.load import schema_keys


def fault(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_order_is_defaults_then_file_then_words_then_sample(tmp_path: Path) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("loss: {tau: 0.2, alpha: 0.2, beta: 0.2}\noptim.lr: 1e-4\n")
    config = load_config(run_file, ["loss.alpha=0.3", "loss.beta=0.3"], sample={"loss.beta": 0.4})
    assert (config.loss.tau, config.loss.alpha, config.loss.beta) == (0.2, 0.3, 0.4)
    assert config.optim.lr == 1e-4
    assert config.loss.gamma == Config().loss.gamma


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("loss.tua=0.1", "loss.tua: unknown key; did you mean loss.tau?"),
        ("tau=0.1", "tau: unknown key; did you mean loss.tau?"),
        ("los.tau=0.1", "los: unknown key; did you mean loss?"),
        ("loss.tau=0", "loss.tau: expected greater than 0, got 0"),
        ("loss.tau=.nan", "loss.tau: expected a finite number, got nan"),
        ("loss.tau=warm", "loss.tau: expected a valid number"),
        ("loss.name=mcl", "loss.name: expected 'macl'"),
        ("loss=3", "loss: expected a valid dictionary"),
        ("loss.tau.x=3", "loss.tau: expected a valid number"),
        ("loss.tau=true", "loss.tau: expected a number, got True"),
        ("loss.num_selected=false", "loss.num_selected: expected a number, got False"),
        ("loss.tile=true", "loss.tile: expected a number, got True"),
        ("eval.ks=[1, true]", "eval.ks: expected a number, got True"),
        ("eval.relevance=true", "eval.relevance: expected a number, got True"),
        ("augment.crop_min=true", "augment.crop_min: expected a number, got True"),
        ("data.std=[1, 1, true]", "data.std: expected a number, got True"),
        ("train.seed=1.5", "train.seed: expected a valid integer"),
        ("eval.ks=[]", "eval.ks: expected at least 1 in the list, got []"),
        ("augment.crop_min=1.5", "augment.crop_min: expected less than or equal to 1"),
        ("train.global_batch=0", "train.global_batch: expected greater than or equal to 2, got 0"),
        ("loss.tau=[", "loss.tau: '[' is not a YAML value"),
        ("=3", "'=3': expected key=value"),
    ],
)
def test_faults_name_key_expectation_and_value(word: str, expected: str) -> None:
    assert expected in fault(word)


def test_a_wrong_item_of_a_list_is_told_once() -> None:
    assert fault("eval.ks=[0]").endswith("eval.ks: expected greater than or equal to 1, got 0")


def test_true_stays_what_it_is_where_it_may_stand() -> None:
    words = ["eval.extra=true", "loss.tf32=true", "model.pretrained=true", "data.verify_crc=false"]
    config = load_config(None, words)
    assert config.eval.extra is config.loss.tf32 is config.model.pretrained is True and config.data.verify_crc is False


@pytest.mark.parametrize(
    "text", ["2:00:00", "1:30", "16:00", "yes", "No", "on", "off", "010", "0b11", "1_000", "2026-11-30", "1:30.5", "="]
)
def test_what_only_yaml_1_1_reads_as_something_else_is_text(text: str, tmp_path: Path) -> None:
    """``2:00:00`` was 7200, ``no`` false, ``010`` 8 and a date was a date, in words and in files."""
    assert parse_words([f"k={text}"]) == {"k": text}
    assert parse_words([f"k={{a: {text}, b: [{text}]}}"]) == {"k": {"a": text, "b": [text]}}
    file = tmp_path / "run.yaml"
    file.write_text(f"k: {text}\n")
    assert load_yaml(file) == {"k": text}
    config = load_config(None, [f"train.tracker_project={text}"])
    file.write_text(dump_yaml(config))
    assert load_config(file) == config
    assert yaml.safe_load(file.read_text())["train"]["tracker_project"] == text  # other programs read it alike


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-3", -3), ("+4", 4), ("0", 0), ("0x1F", 31), ("0o17", 15), ("1.5", 1.5), (".5", 0.5), ("1e-4", 1e-4),
     ("-.inf", float("-inf")), ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None)],
)  # fmt: skip
def test_numbers_truths_and_nothing_are_what_they_look_like(text: str, value: object) -> None:
    found = parse_words([f"k={text}"])["k"]
    assert found == value and type(found) is type(value)


def test_settings_read_text_as_people_mean_it() -> None:
    assert "train.epochs: expected a valid integer" in fault("train.epochs=1:30")  # was 90
    config = load_config(None, ["train.epochs=010", "train.seed=1_000", "eval.extra=yes", "data.verify_crc=off"])
    assert (config.train.epochs, config.train.seed) == (10, 1000)
    assert config.eval.extra is True and config.data.verify_crc is False
    assert load_config(None, ["model.pretrained=no"]).model.pretrained is False
    assert load_config(None, ["model.pretrained=a1_in1k"]).model.pretrained == "a1_in1k"
    assert load_config(None, ["data.train_split=007"]).data.train_split == "007"


def test_all_faults_of_a_call_are_told_at_once() -> None:
    text = fault("loss.tau=-1", "optim.lr=-1", "train.sed=3")
    assert "loss.tau" in text and "optim.lr" in text and "did you mean train.seed?" in text


def test_cross_field_faults() -> None:
    assert "crop_min must not exceed crop_max" in fault("augment.crop_min=0.9", "augment.crop_max=0.5")
    assert "clip_min must not exceed clip_max" in fault("loss.clip_min=20")


def test_a_word_without_equals_or_given_twice() -> None:
    assert "expected key=value" in fault("loss.tau")
    assert "given twice" in fault("loss.tau=1", "loss.tau=2")


def test_file_faults_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    cases = {
        "loss: {tua: 1}": "loss.tua: unknown key; did you mean loss.tau?",
        "loss: [": "not valid YAML (line ",
        "- 1\n- 2": "expected a mapping",
        "loss: {tau: 0.1}\nloss: {tau: 0.2}": "appears twice",
        "1: 2": "expected a mapping",
        "a: !!python/object/apply:os.system [true]": "not valid YAML",
    }
    for text, expected in cases.items():
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert expected in str(caught.value) and str(path) in str(caught.value), text
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(path)


def test_numbers_in_exponent_form_are_numbers() -> None:
    assert parse_words(["a=1e-4", "b=-2E+3", "c=1.5e3", "d=3", "e=null", "f=1e"]) == {
        "a": 1e-4,
        "b": -2000.0,
        "c": 1500.0,
        "d": 3,
        "e": None,
        "f": "1e",
    }


@example(tau=0.1, directory="\xa0", relevance="any")
@example(tau=0.1, directory=":\xa0", relevance="any")
@example(tau=0.1, directory="a\u2028b é\n", relevance=0.5)
@example(tau=0.1, directory="0E0", relevance="any")
@given(
    tau=st.floats(0.01, 10, allow_subnormal=False),
    directory=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20),
    relevance=st.one_of(st.sampled_from(["any", "exact", "subset"]), st.floats(0.01, 1)),
)
@settings(max_examples=50, deadline=None)
def test_the_resolved_form_reads_back_to_an_equal_object(
    tmp_path_factory: pytest.TempPathFactory, tau: float, directory: str, relevance: str | float
) -> None:
    config = build(Config, {"loss.tau": tau, "data.dir": directory, "eval.relevance": relevance})
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    for comments in (False, True):
        path.write_text(dump_yaml(config, comments=comments), encoding="utf-8")
        assert load_config(path) == config


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_word_is_a_setting_or_a_clear_error(word: str) -> None:
    try:
        load_config(None, [word])
    except ConfigError as error:
        assert str(error)


def test_every_leaf_has_help_and_is_listed() -> None:
    keys = schema_keys(Config)
    assert list(flatten(Config())) == keys
    for section in Config.model_fields.values():
        for name, field in section.annotation.model_fields.items():  # type: ignore[union-attr]
            assert field.description, name


def test_plain_yaml_readers_agree_on_the_resolved_form() -> None:
    assert build(Config, yaml.safe_load(dump_yaml(Config()))) == Config()


def test_every_choice_can_be_typed_as_a_word() -> None:
    """YAML reads off, on, yes and no as truth values: no choice may be spelled so."""
    words = [
        f"{section}.{name}={choice}"
        for section, field in Config.model_fields.items()
        for name, inner in field.annotation.model_fields.items()  # type: ignore[union-attr]
        for choice in re.findall(r"'([a-z_0-9]+)'", str(inner.annotation))
    ]
    assert len(words) > 60
    for word in words:
        try:
            load_config(None, [word])
        except ConfigError as error:
            assert "expected '" not in str(error), word  # refused beside other settings, but understood
