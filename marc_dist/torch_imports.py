"""Import torchvision and timm without torch's compiler, which costs a process about two seconds.

While it is imported, torchvision asks ``torch._dynamo`` one question and decorates one function with
``torch.compiler.disable``. Each loads the compiler, although nothing is compiled. Here both wait: the function is left
out of compilation as soon as the compiler is really loaded, and not before. Training gains nothing: torch's
optimizers load the compiler, too.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"


def lazily_disabled(function: Callable[..., Any], *more: Any, **words: Any) -> Callable[..., Any]:
    """``torch.compiler.disable(function)``, which loads no compiler: nothing is compiled before it is loaded.

    Args:
        function: what is to be left out of compilation.
        more: for the compiler's own ``disable``.
        words: likewise.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if disabled:
            return disabled[0](*args, **kwargs)
        compiler = sys.modules.get(COMPILER)
        if compiler is None or not hasattr(compiler, "disable") or isinstance(compiler, _Later):
            return function(*args, **kwargs)
        disabled.append(compiler.disable(function, *more, **words))
        return disabled[0](*args, **kwargs)

    return call


class _Later(ModuleType):
    """Stands for the compiler while other packages are imported."""


def _compiles(device: Any) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside the block, what is imported does not load torch's compiler. Does nothing once it is loaded."""
    if COMPILER in sys.modules:
        yield
        return
    package, utils = _Later(COMPILER), _Later(f"{COMPILER}.utils")
    package.__path__ = []
    package.disable = lazily_disabled  # type: ignore[attr-defined]
    utils.is_compile_supported = _compiles  # type: ignore[attr-defined]
    stand_ins = {COMPILER: package, utils.__name__: utils}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if torch.__dict__.get("_dynamo") is package:
            delattr(torch, "_dynamo")


def load_timm() -> ModuleType:
    """The module ``timm``, imported without torch's compiler."""
    with without_compiler():
        import timm
    return timm  # type: ignore[no-any-return]
