"""YAML files, ``key=value`` words and samples of a search meet here and become one validated ``Config``.

Order: schema defaults < run file < words < a trial's sample. All four are mappings with dotted keys.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from marc_dist.config.errors import ConfigError, first_line
from marc_dist.config.schema import Config
from marc_dist.config.suggest import suggestion

T = TypeVar("T", bound=BaseModel)
MAX_BYTES = 1 << 20  # of a YAML file


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML that reads plain words as YAML 1.2 does, and whose keys must not repeat.

    YAML 1.1 takes ``2:00:00`` for 7200, ``no`` and ``off`` for false, ``010`` for 8, ``2026-11-30`` for a date and
    ``1e-4`` for text. Here the last is a number and the others are text; what text means is a setting's own affair.

    Aliases are refused: a few lines of them may mean billions of values, or a mapping inside itself.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are refused; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise yaml.constructor.ConstructorError(None, None, "half of a UTF-16 pair", node.start_mark)
        return value

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(super().construct_scalar(node))
        digits = text.lstrip("+-")
        try:
            value = int(digits, 0 if digits[:2] in ("0x", "0o") else 10) * (-1 if text.startswith("-") else 1)
        except ValueError:  # !!int of something else; or more digits than Python converts
            raise yaml.constructor.ConstructorError(None, None, "not a whole number", node.start_mark) from None
        if abs(value) >> 64:
            raise yaml.constructor.ConstructorError(None, None, "a whole number beyond 64 bits", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_yaml_int)
_NUMBER = list("-+0123456789.")
_PLAIN: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", _NUMBER),
    (
        "float",
        r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)|[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        _NUMBER,
    ),
)
"""What a plain word may be besides text: kind, pattern, first characters. YAML 1.2, but for numbers like ``010``,
which people write for 8 or for 10 or as a name: text, of which an integer setting makes 10."""
_YamlLoader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in _PLAIN:
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that ``_YamlLoader`` or a YAML 1.1 reader would take for something else (``1e5``, ``no``)."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeLoader.yaml_implicit_resolvers.get(first, []) + _YamlLoader.yaml_implicit_resolvers.get(first, [])
    for first in {**yaml.SafeLoader.yaml_implicit_resolvers, **_YamlLoader.yaml_implicit_resolvers}
}


def parse_scalar(text: str, place: str) -> Any:
    """The YAML value of a word's right-hand side: number, true/false, null, list or text."""
    try:
        return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - a SafeLoader subclass
    except Exception as error:  # see load_yaml
        raise ConfigError(f"{place}: {_shown(text)} is not a YAML value ({_first_line(error)})") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: missing, unreadable, too large, not YAML, or not a mapping; names file and line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: expected a file of settings, at most {MAX_BYTES >> 20} MiB; is it the right one?")
    try:
        value = yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - a SafeLoader subclass
    except Exception as error:  # whatever comes up in PyYAML's constructors: ValueError for 2024-13-45, ...
        raise ConfigError(f"{path}: not valid YAML ({_first_line(error)})") from None
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(value).__name__}")
    return value


def parse_words(words: Iterable[str]) -> dict[str, Any]:
    """``["loss.tau=0.07"]`` -> ``{"loss.tau": 0.07}``.

    Raises:
        ConfigError: a word without ``=``, without a key, or given twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r}: expected key=value, for example loss.tau=0.07")
        if "/" in key:
            raise ConfigError(f"{word}: no such folder or file, and no setting has a slash in its name")
        if key in values:
            raise ConfigError(f"{key}: given twice on the command line")
        values[key] = parse_scalar(text, key)
    return values


def _merge(tree: dict[str, Any], updates: Mapping[str, Any], place: str) -> None:
    """Merge dotted or nested ``updates`` into the nested ``tree``, the later value winning leaf by leaf."""
    for dotted, value in updates.items():
        *parents, leaf = dotted.split(".") if isinstance(dotted, str) else [dotted]  # tables keyed by numbers
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"{place}{dotted}: {parent} is a value, not a group of settings")
            node = child
        if isinstance(value, Mapping):
            child = node.setdefault(leaf, {})
            if not isinstance(child, dict):
                raise ConfigError(f"{place}{dotted}: is a value, not a group of settings")
            _merge(child, value, place)
        else:
            node[leaf] = value


def schema_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a schema, leaves only, in order."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += schema_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def build(model: type[T], *layers: Mapping[str, Any], place: str = "") -> T:
    """Validate merged ``layers`` (earlier ones weaker) against ``model``.

    Args:
        model: a pydantic schema; ``Config`` for runs.
        layers: nested or dotted mappings.
        place: put before every message, for example ``"run.yaml: "``.

    Raises:
        ConfigError: every fault of the call in one line, each with its dotted key, separated by ``" | "``.
    """
    tree: dict[str, Any] = {}
    for layer in layers:
        _merge(tree, layer, place)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        known = schema_keys(model)
        groups = sorted({key.rsplit(".", 1)[0] for key in known if "." in key})
        messages: list[str] = []
        faults = error.errors(include_url=False)
        lists = {fault["loc"][:-1] for fault in faults}
        for fault in faults:
            key = _key(fault["loc"], known)
            if fault["type"] == "too_short" and fault["loc"] in lists:  # only without the items that are told anyway
                continue
            if fault["type"] == "extra_forbidden":
                text = f"{key}: unknown key{suggestion(key, known + groups)}"
            elif fault["type"] == "value_error":
                message = fault["msg"].removeprefix("Value error, ")
                text = f"{key}: {message}" if key else message  # a contradiction between sections names its keys itself
            else:
                message = fault["msg"].removeprefix("Input should be ")
                if fault["type"] == "too_short":
                    message = f"at least {fault['ctx']['min_length']} in the list"
                text = f"{key}: expected {message[:1].lower()}{message[1:]}, got {_shown(fault['input'])}"
            if text not in messages:
                messages.append(text)
        raise ConfigError(place + " | ".join(messages)) from None


def _key(location: tuple[int | str, ...], known: list[str]) -> str:
    """The dotted key of a fault: pydantic appends the names of union members, which are cut off again."""
    parts = [str(part) for part in location]
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return ".".join(parts)


def load_config(path: Path | None = None, words: Iterable[str] = (), **layers: Mapping[str, Any]) -> Config:
    """The run configuration of a file, words, and further layers; later ones are stronger.

    Args:
        path: of a run file; None = the schema's defaults.
        words: ``key=value``, as on the command line.
        layers: mappings of dotted keys, the last one strongest; their names are for the reader of the call.

    Raises:
        ConfigError: see ``build``.
    """
    run_file: dict[str, Any] = {}
    if path is not None:
        run_file = load_yaml(path)
        build(Config, run_file, place=f"{path}: ")  # faults of the file are told with the file's name
    return build(Config, run_file, parse_words(words), *layers.values())


def dump_yaml(config: BaseModel, *, comments: bool = False) -> str:
    """A configuration as YAML that ``load_yaml`` and ``build`` read back to an equal object.

    Args:
        config: any section or the whole.
        comments: append each field's help as a comment.
    """
    lines: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            lines.append(f"{name}:")
            lines += [f"  {line}" for line in dump_yaml(value, comments=comments).splitlines()]
        else:
            plain = config.model_dump(mode="json", include={name})[name]
            line = f"{name}: {_scalar(plain)}"
            lines.append(f"{line}  # {field.description}" if comments and field.description else line)
    return "\n".join(lines) + "\n"


def _scalar(plain: Any) -> str:
    """A value as YAML on one line; what a reader cannot see (a no-break space, a line separator) is escaped."""
    for unicode, style in ((True, None), (False, '"')):
        text: str = yaml.dump(
            plain, Dumper=_Dumper, default_flow_style=True, default_style=style, allow_unicode=unicode, width=1_000_000
        )
        text = text.removesuffix("\n").removesuffix("\n...")
        if text.isprintable():
            break
    return text


def flatten(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """``{"loss.tau": 0.1, ...}``: every leaf under its dotted key."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(value: Any) -> str:
    """``repr``, bounded in length and depth: what people give may be of any size."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    short.maxlong = 40
    short.maxlist = short.maxtuple = short.maxdict = 20
    return short.repr(value)


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)
