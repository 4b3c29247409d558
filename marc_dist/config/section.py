"""What every group of settings is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors, never dropped, and true is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse True and False where a number is meant; pydantic reads them as 1 and 0.

        Where truth or a name may stand, ``no`` is truth, as it is where truth alone may.
        """
        wrong = next((one for one in _leaves(value) if _is_truth(one)), None)
        if wrong is not None and info.field_name is not None:
            kinds = set(_kinds(cls.model_fields[info.field_name].annotation))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"expected a number, got {wrong!r}")
        if isinstance(value, str) and value.lower() in TRUTH and info.field_name is not None:
            if {bool, str} <= set(_kinds(cls.model_fields[info.field_name].annotation)):
                return TRUTH[value.lower()]
        return value


def _leaves(value: Any) -> Iterator[Any]:
    """A value, or what a mapping, a list, or a list of lists holds: no setting is deeper."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from one if isinstance(one, list | tuple) else (one,)
    else:
        yield value


def _is_truth(value: Any) -> bool:
    """Whether a value is True or False: Python's, NumPy's or torch's."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).rpartition(".")[2] == "bool"


def _kinds(annotation: Any) -> Iterator[Any]:
    """Every type that an annotation names."""
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)
