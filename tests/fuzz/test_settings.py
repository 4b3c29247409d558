"""YAML files of every kind, and words on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from marc_dist.cli import eval as evaluate
from marc_dist.cli import launch, shard, train
from marc_dist.cluster.preset import load_preset
from marc_dist.config import Config, ConfigError, dump_yaml, list_presets, load_config, load_yaml
from marc_dist.config.presets import preset_dir
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from tests.fuzz.damage import NAMES, altered, damaged, error_of, fresh, fuzz, in_time, little_memory, run, snapshot

RUN = dump_yaml(Config()).encode()
FILES = {
    "run": RUN,
    **{f"shards/{name}": (preset_dir("shards") / f"{name}.yaml").read_bytes() for name in list_presets("shards")},
    "launchers/local": (preset_dir("launchers") / "local.yaml").read_bytes(),
}
SCALARS = (
    "2024-13-45", "2024-01-01", "0x_", "0b_", "._", "1:99:99", "9" * 5000, "0x" + "f" * 9000, "1e400", "-.inf", ".nan",
    "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary é", "!!map x", "!!set [1]", "!!omap x", "!!null x",
    "!!python/object/apply:os.system [true]", "!!python/name:os.system", "!x y", "&a [*a]", "&a {b: *a}", "*a",
    '"\\ud800"',
    '"\\0"', '"\\x1b[2J"', '"\\U00110000"', "[" * 60, "{" * 60, "- " * 3000, "? " * 500, "[[1]: 2]", "{[1]: 2}",
    "{1: 2}",
    "{? a}", "<<: 1", "{<<: [1]}", "%YAML 9.9", "--- 1\n--- 2", "...", "\ufeff1", "\x00", "\x85", "\t1", "|\n a",
    "'", "@", "`",
    "null", "~", "yes", "", " ", "a: b", "'" + "x" * 5000 + "'", "[" + "1," * 5000 + "]", "{" + "a" * 3000 + "}",
    "~nobody-here/x",
)  # fmt: skip
KEYS = ("loss.tau", "data.dir", "train.run_dir", "eval.ks", "train.seed", "model.weights", "cluster.env.A",
        "cluster.env", "loss", "data..dir", ".", "loss.tau" + ".a" * 3000, "a" * 3000, "é", "-x", "--print", "<<", "0",
        "\x1b[2J")  # fmt: skip


def reader(name: str) -> Callable[[Path], object]:
    if name == "run":
        return load_config
    if name.startswith("shards/"):
        return lambda path: load_recipe(str(path))
    return lambda path: load_preset(str(path))


def message(path: Path, data: bytes, name: str = "run") -> str | None:
    path.write_bytes(data)
    text = error_of(lambda: reader(name)(path))
    assert text is None or len(text) < 50_000
    return text


@pytest.mark.parametrize("name", ["run", "shards/whdld", "shards/folder", "launchers/local"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    assert message(tmp_path / "x.yaml", FILES[name], name) is None

    @fuzz(8 if name == "run" else 25)
    @given(damaged(FILES[name]))
    def check(data: bytes) -> None:
        message(tmp_path / "x.yaml", data, name)

    check()


@pytest.mark.parametrize("name", FILES)
def test_altered_files(name: str, own: Path, tmp_path: Path) -> None:
    sound = yaml.safe_load(FILES[name])

    @fuzz(25)
    @given(altered(sound))
    def check(value: Any) -> None:
        try:
            text = json.dumps(value)  # quick to write, and YAML for once
        except ValueError:
            return
        path = tmp_path / "x.yaml"
        if message(path, text.encode(), name) is None and name.startswith("shards/"):
            recipe = load_recipe(str(path))
            error_of(recipe.mask_rule)
            if recipe.builtin is None:
                error_of(lambda: read_source(recipe, [own], allow=["counts", "doubled", "missing", "surplus"]))

    check()


@fuzz(200)
@given(
    st.sampled_from(SCALARS),
    st.sampled_from(["{}", "data: {}", "data: {{dir: {}}}", "loss:\n  tau: {}", "{}: 1", "? {}"]),
)
def test_odd_values_in_a_file(tmp_path_factory: pytest.TempPathFactory, value: str, frame: str) -> None:
    message(tmp_path_factory.getbasetemp() / "x.yaml", frame.format(value).encode("utf-8", "surrogatepass"))


@fuzz(250)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(SCALARS)) | st.sampled_from(NAMES + SCALARS), max_size=3)
)
def test_words(tmp_path_factory: pytest.TempPathFactory, words: list[tuple[str, str] | str]) -> None:
    """Everything that is read before a run: faults are told, and what is understood can be shown."""
    plain = ["=".join(word) if isinstance(word, tuple) else word for word in words]

    def show() -> None:
        assert dump_yaml(load_config(None, plain), comments=True).encode()

    error_of(show)


def arguments() -> st.SearchStrategy[list[str]]:
    pair = st.tuples(st.sampled_from(KEYS), st.sampled_from(SCALARS)).map("=".join)
    flags = st.sampled_from(
        ["--print", "--schema", "--help", "--data", "--nodes", "--procs-per-node", "--dry-run", "train", "eval"]
    )
    word = pair | flags | st.sampled_from([*NAMES, *SCALARS])
    # the system passes neither NULs nor halves of characters
    return st.lists(word.filter(lambda text: "\0" not in text and "\ud800" not in text), max_size=4)


@pytest.mark.parametrize(
    ("module", "first"),
    [(train, ["--print"]), (launch, ["local", "--print"]), (launch, ["local", "--dry-run"]), (launch, ["--print"]),
     (evaluate, ["--print"]), (evaluate, ["--print", "RUN"]), (train, ["--print", "RUN"])],
)  # fmt: skip
def test_commands(
    module: Any, first: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh(tmp_path / "work"))
    (tmp_path / "work" / "RUN").mkdir()
    (tmp_path / "work" / "RUN" / "config.yaml").write_bytes(RUN)
    before = snapshot(tmp_path)

    @fuzz(25)
    @given(arguments())
    def check(words: list[str]) -> None:
        run(module.main, [*first, *words], capsys)
        assert snapshot(tmp_path) == before

    check()


SHARD_WORDS = ("--dataset", "--list", "--info", "--source", "--out", "--labels", "--table", "--separator",
               "--index-order", "--classes", "--to-png", "--allow", "--samples-per-shard", "--shard-mb",
               "--workers", "--resume", "--force")  # fmt: skip


def test_the_packing_command(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh(tmp_path / "work"))
    before = snapshot(tmp_path)
    values = [
        "folder",
        "whdld",
        str(own),
        "1",
        "0",
        "-1",
        "nan",
        "1e400",
        "9" * 5000,
        "sand,sea",
        "a,,a",
        "table",
        ",",
        "masks",
    ]
    word = st.sampled_from(SHARD_WORDS) | st.sampled_from([*values, *NAMES[:10], *NAMES[12:]])

    @fuzz(80)
    @given(st.lists(word.filter(lambda text: "\0" not in text and "\ud800" not in text), max_size=5), st.booleans())
    def check(words: list[str], more: bool) -> None:
        first = ["--dataset", "folder", "--source", str(own), "--workers", "1"] if more else []
        run(shard.main, [*first, "--dry-run", *words], capsys)
        left = {name for name in snapshot(tmp_path) if name not in before}
        assert not [name for name in left if (tmp_path / name).is_file()]  # an empty parent of --out may be made

    check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !!timestamp 2024-13-45", "not valid YAML"),  # ValueError
        ("a: !!bool x", "not valid YAML"),  # KeyError
        ("a: !!timestamp x", "not valid YAML"),  # AttributeError
        ("a: !!map x", "not valid YAML"),  # ValueError
        ("train.seed: " + "9" * 5000, "not valid YAML"),  # ValueError: too many digits
        ("train.seed: 0x" + "f" * 9000, "a whole number beyond 64 bits"),  # could be read but not shown
        ('data.dir: "\\ud800"', "half of a UTF-16 pair"),  # could not be printed
        ("data: &a {dir: *a}", "aliases (*name) are refused"),  # RecursionError
        ("[" * 5000, "nested too deeply"),
        ("loss.tau: " + "'" + "x" * 100_000 + "'", "loss.tau: expected a valid number"),
        ("a: " + "x" * 2_000_000, "expected a file of settings, at most 1 MiB"),
    ],
)
def test_files_that_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    found = message(tmp_path / "x.yaml", text.encode())
    assert found and expected in found and len(found) < 1000


def test_a_billion_laughs(tmp_path: Path) -> None:
    """Found: the value of ten lines was written out in full into the error."""
    lines = ["a0: &a0 [ha, ha]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with little_memory(), in_time(), pytest.raises(ConfigError, match="line 2: aliases"):
        load_config(tmp_path / "x.yaml")


def test_settings_from_a_device(tmp_path: Path) -> None:
    with little_memory(), in_time(), pytest.raises(ConfigError, match="at most 1 MiB"):
        load_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("module", "words", "expected"),
    [
        (train, ["~nobody-here/run.yaml", "--print"], "~nobody-here/run.yaml: no such user"),
        (train, ["x" * 300, "--print"], "File name too long"),
        (train, ["loss.tau" + ".a" * 3000 + "=1", "--print"], "loss.tau: expected a valid number"),
        (train, ["loss.tau=" + "[" * 5000, "--print"], "loss.tau: '[["),
        (train, ["loss.tau=2024-13-45", "--print"], "loss.tau: expected a valid number"),
        (train, ["2026", "train.run_dir=x", "--print"], "train.run_dir: given twice"),
        (evaluate, ["2026", "eval.ks=[" + "1," * 300 + "x]", "--print"], "eval.ks: expected"),
        (launch, ["~nobody-here/x.yaml", "--print"], "no such user"),
        (launch, ["x" * 300, "--print"], "File name too long"),
        (shard, ["--verify", "~nobody-here"], "no such user"),
        (shard, ["--verify", "x" * 300], "File name too long"),
        (shard, ["--info", "a\x1b[2Jb"], r"a\x1b[2Jb"),
    ],
)  # fmt: skip
def test_words_that_are_refused(
    module: Any,
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found: each ended in a traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2026").mkdir()
    (tmp_path / "2026" / "config.yaml").write_bytes(RUN)
    code, error = run(module.main, words, capsys)
    assert code == 2 and expected in error


@pytest.mark.parametrize("name", ["2026", "1e3", "null", "a: b", "[x", "'"])
def test_a_run_folder_whose_name_is_a_value(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found: the name was read as YAML, so that ``marc-train 2026`` asked for a valid string."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.yaml").write_bytes(RUN)
    assert train.main([name, "--print"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["run_dir"] == name


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("expect: {stem: '('}", "expect.stem: expected a regular expression"),
        ("expect: {label_counts: {all: [1, 2, 3]}}", "expect.label_counts.all: expected 2 numbers, one a class, got 3"),
    ],
)
def test_recipes_that_are_refused(recipe: str, expected: str, tmp_path: Path) -> None:
    """Found: both were noticed only when the download was read, with a traceback."""
    path = tmp_path / "x.yaml"
    path.write_text(
        "title: x\nlabels: [folders]\nclasses: [{name: a}, {name: b}]\n"
        f"splits: {{shares: {{train: 1.0}}}}\n{recipe}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert expected in str(caught.value)
