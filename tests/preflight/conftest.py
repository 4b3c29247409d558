"""The data that the training's tests use, too."""

from tests.training.conftest import small_dir

__all__ = ["small_dir"]
