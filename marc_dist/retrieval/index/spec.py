"""``eval.index``: which index searches, as a word that people write. No faiss, no arrays."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from marc_dist.config import ConfigError


@dataclass(frozen=True)
class IndexSpec:
    """What a word of ``eval.index`` means.

    Attributes:
        text: the word.
        kind: ``flat``: exact; ``binary``: codes of one bit a number, Hamming distance, exact over the codes;
            ``factory``: any FAISS index, approximate, its answers ordered by their exact scores.
        factory: FAISS's factory string, of kind ``factory``.
        parameters: of the search, as FAISS's ParameterSpace names them (``nprobe``, ``efSearch``).
        bits: of an ITQ code; None = as many as the vector has numbers, their signs.
    """

    text: str
    kind: Literal["flat", "binary", "factory"]
    factory: str = ""
    parameters: dict[str, float] = field(default_factory=dict)
    bits: int | None = None

    @property
    def exact(self) -> bool:
        """Whether every item's score is compared: then whole rankings make sense."""
        return self.kind != "factory"


def parse_spec(text: str) -> IndexSpec:
    """``flat``, ``sign``, ``itq64``, or a FAISS factory string, its search parameters after a colon.

    Raises:
        ConfigError: no text, an empty word, a number of bits that is not a multiple of 8, a parameter without a number.
    """
    place = f"eval.index={text}"
    if not isinstance(text, str):
        raise ConfigError(f"{place}: expected a text, got {type(text).__name__}; flat is the exact search")
    name, _, told = text.strip().partition(":")
    parameters = _parameters(told, place)
    plain = name.casefold()
    if plain in ("flat", "sign") or re.fullmatch(r"itq\d+", plain):
        if parameters:
            raise ConfigError(f"{place}: {plain} takes no parameters")
        if plain == "flat":
            return IndexSpec("flat", "flat")
        bits = None if plain == "sign" else int(plain[3:])
        if bits is not None and (bits % 8 or not 8 <= bits <= 4096):
            raise ConfigError(f"{place}: expected a multiple of 8 bits from 8 to 4096, got {bits}, e.g. itq64")
        return IndexSpec(plain, "binary", bits=bits)
    if not name:
        raise ConfigError(f"{place}: expected flat, sign, itq64 or a FAISS factory string such as IVF256,PQ32")
    if re.search(r"IDMap|(HNSW|NSG)0", name):  # ours has ids of its own; a graph without edges ends FAISS
        raise ConfigError(f"{place}: expected an index without IDMap, and a graph of one edge or more, e.g. HNSW32")
    if re.search(r"(?<![A-Za-z])(IVF|IMI)0", name):  # FAISS makes it, and fails at the search
        raise ConfigError(f"{place}: expected 1 list or more, got 0, e.g. IVF256,Flat")
    return IndexSpec(text.strip(), "factory", factory=name, parameters=parameters)


def _parameters(told: str, place: str) -> dict[str, float]:
    """What follows the colon: name=number, and more of them after commas."""
    parameters: dict[str, float] = {}
    for pair in told.split(",") if told else []:
        key, equals, value = pair.partition("=")
        try:
            parameters[key.strip()] = number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not key.strip() or not 0 < number <= 2**31:
            raise ConfigError(
                f"{place}: after the colon expected name=number, above 0, got {pair!r}, e.g. IVF256,Flat:nprobe=8"
            )
    return parameters
