"""The choices on which published retrieval metrics differ, each by its name; pure."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np

from marc_dist.metrics.arguments import check_choice, check_k

Gain = Literal["count", "jaccard", "cosine"]
Rule = Literal["any", "exact", "subset"]
Relevance = Rule | float
Denominator = Literal["hits", "min", "all", "k"]
Ideal = Literal["database", "retrieved"]
NdcgForm = Literal["auto", "linear", "exponential"]
WithoutRelevant = Literal["zero", "skip"]


def check_gain(gain: object) -> None:
    """Refuse anything but a ``Gain``."""
    check_choice("gain", gain, get_args(Gain))


def check_denominator(denominator: object) -> None:
    """Refuse anything but a ``Denominator``."""
    check_choice("denominator", denominator, get_args(Denominator))


def as_relevance(rule: Any) -> Relevance:
    """A word of ``Rule``, or a label Jaccard as Python's float.

    Raises:
        ValueError: anything else.
    """
    if isinstance(rule, bool) or not isinstance(rule, Real):  # NumPy's numbers are of this kind, its bool is not
        check_choice("relevance", rule, get_args(Rule), also=" or a label Jaccard above 0, up to 1")
        return rule
    if not 0 < float(rule) <= 1:  # NaN, too
        raise ValueError(f"relevance: expected a label Jaccard above 0, up to 1, got {rule!r:.60}")
    # NumPy's by its digits: the 0.6 of float32 lies above 3/5, and a label Jaccard of 3/5 would not be relevant
    return float(str(rule)) if isinstance(rule, np.floating) else float(rule)


def check_ks(ks: Any) -> tuple[int, ...]:
    """Cut-offs as a tuple of one whole number or more."""
    try:
        listed = None if isinstance(ks, str | bytes) else list(ks)
    except TypeError:  # a number, also an array without a dimension
        listed = None
    if listed is None:
        raise ValueError(f"ks: expected a list of whole numbers, got {ks!r:.60}")
    if not listed:
        raise ValueError("ks: expected one cut-off or more, got none")
    return tuple(check_k(k, "ks") for k in listed)


@dataclass(frozen=True)
class Scoring:
    """What is computed, and by which conventions. The defaults are those of ``marc-eval``.

    Attributes:
        ks: cut-offs.
        gain: graded relevance of ACG, nDCG and wAP; see ``gains``.
        relevance: what counts as relevant; see ``relevant``.
        denominator: of ``mAP@k``; see ``average_precision``.
        ideal: of nDCG: the best list of the whole archive, or the retrieved items in their best order.
        ndcg_form: gain inside nDCG: linear g (trec_eval, ranx, torchmetrics), exponential 2^g - 1 (Burges et al.), or
            auto: exponential for count, linear for jaccard and cosine.
        without_relevant: queries without any relevant item score 0 (ANMRR: 1) and count, or are left out of all means.

    Raises:
        ValueError: a word that is none of these, or a cut-off below 1.
    """

    ks: tuple[int, ...] = (10, 100)
    gain: Gain = "count"
    relevance: Relevance = "any"
    denominator: Denominator = "hits"
    ideal: Ideal = "database"
    ndcg_form: NdcgForm = "auto"
    without_relevant: WithoutRelevant = "zero"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", check_ks(self.ks))
        check_gain(self.gain)
        object.__setattr__(self, "relevance", as_relevance(self.relevance))
        check_denominator(self.denominator)
        check_choice("ideal", self.ideal, get_args(Ideal))
        check_choice("ndcg_form", self.ndcg_form, get_args(NdcgForm))
        check_choice("without_relevant", self.without_relevant, get_args(WithoutRelevant))

    @property
    def linear(self) -> bool:
        """Whether nDCG takes the gain as it is."""
        return self.ndcg_form == "linear" or (self.ndcg_form == "auto" and self.gain != "count")
