"""Settings: schema, loading, presets, and the errors that people see. Imports nothing else of ours, and no torch."""

from marc_dist.config.errors import EXIT_USER, ConfigError, DataError, LaunchError, MarcError, printable
from marc_dist.config.load import build, dump_yaml, flatten, load_config, load_yaml, parse_words
from marc_dist.config.paths import user_path
from marc_dist.config.presets import find_preset, list_presets
from marc_dist.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
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
    "flatten",
    "list_presets",
    "load_config",
    "load_yaml",
    "parse_words",
    "printable",
    "user_path",
]
