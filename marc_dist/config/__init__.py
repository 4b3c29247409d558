"""Settings: schema, loading, presets, and the errors that people see. Imports nothing else of ours, and no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from marc_dist.config.errors import (
    EXIT_USER,
    ConfigError,
    DataError,
    LaunchError,
    MarcError,
    first_line,
    is_passing,
    printable,
)
from marc_dist.config.paths import user_path

if TYPE_CHECKING:
    from marc_dist.config.augment import AugmentConfig
    from marc_dist.config.load import build, dump_yaml, flatten, load_config, load_yaml, parse_words, schema_keys
    from marc_dist.config.loss import LossConfig
    from marc_dist.config.presets import find_preset, list_presets
    from marc_dist.config.schema import (
        Config,
        DataConfig,
        EvalConfig,
        ModelConfig,
        OptimConfig,
        TrainConfig,
    )

__all__ = [
    "EXIT_USER",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "EvalConfig",
    "LaunchError",
    "LossConfig",
    "MarcError",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "build",
    "dump_yaml",
    "find_preset",
    "first_line",
    "is_passing",
    "flatten",
    "list_presets",
    "load_config",
    "load_yaml",
    "parse_words",
    "printable",
    "schema_keys",
    "user_path",
]

# Imported when asked for: helper processes of a packing need the errors only, and building the schema takes them longer
# than a hundred pictures.
_HOMES = {
    "augment": ("AugmentConfig",),
    "load": ("build", "dump_yaml", "flatten", "load_config", "load_yaml", "parse_words", "schema_keys"),
    "loss": ("LossConfig",),
    "presets": ("find_preset", "list_presets"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "schema")
    return getattr(import_module(f"{__name__}.{home}"), name)
