"""dense, streamed and triton (in Triton's interpreter where there is no GPU) agree; memory; precision."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from marc_dist.config import LossConfig
from marc_dist.objective import choose_implementation, global_objective, objective, streamed
from tests.objective import naive
from tests.objective.cases import CONSTANTS, MIXED, NAMES, long_tailed, make, prototypes, run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = ["triton"] if importlib.util.find_spec("triton") else []  # it exists for Linux only
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

# name -> (A, C, first, D, labels of the candidates)
SHAPES: dict[str, tuple[int, int, int, int, Tensor]] = {
    "square": (70, 70, 0, 19, long_tailed(70, 6)),
    "rectangular": (37, 150, 41, 33, long_tailed(150, 17)),
    "empty rank": (0, 40, 11, 8, long_tailed(40, 5)),
    "one anchor, at the end": (1, 33, 32, 8, long_tailed(33, 5)),
    "no labels at all": (20, 45, 5, 8, torch.zeros(45, 4, dtype=torch.bool)),
    "one label set for all": (20, 45, 25, 8, torch.tensor([[True, False, True]]).expand(45, 3)),
    "every set unique": (60, 64, 4, 16, torch.tensor([[bool(n >> b & 1) for b in range(6)] for n in range(64)])),
    "512 labels": (12, 40, 3, 8, long_tailed(40, 512) & long_tailed(40, 512, seed=2)),
}
FLAVOURS: dict[str, dict[str, Any]] = {
    "macl": CONSTANTS,
    "tau 0.01": {"tau": 0.01, "t_min": 0.001},
    "soften, dice, positives only": dict(
        CONSTANTS, temperature_form="soften", overlap="dice", temperature_scope="positives_only"
    ),
    "soften by overlap, sharpen by rarity": dict(CONSTANTS, temperature_form="soften_sharpen"),
    "multiplicative, cosine, equal sets": dict(
        CONSTANTS, temperature_form="multiplicative", overlap="cosine", positives="all",
        temperature_scope="positives_only",
    ),
    "anchor recall, max": dict(CONSTANTS, overlap="anchor_recall", rarity="max", rarity_scale="inverse_minmax"),
    "count over labels, floor": dict(CONSTANTS, overlap="count_over_labels", t_min=0.15),
    "row of positive": dict(CONSTANTS, temperature_scope="per_positive_row"),
    **{name: {"name": name} for name in NAMES if name != "macl"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    """conftest.py asks for the interpreter before anything imports the kernels."""
    assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"


def evaluate(shape: str, dtype: torch.dtype, implementation: str, **options: Any) -> tuple[Tensor, ...]:
    """Value, and gradients of anchors, candidates and prototypes, of one rank."""
    num, total, first, dim, labels = SHAPES[shape]
    generator = torch.Generator().manual_seed(5)
    z = naive.unit(torch.randn(total, dim, dtype=torch.float64, generator=generator)).to(DEVICE, dtype)
    labels = labels.to(DEVICE)
    own = slice(first, first + num)
    anchors, candidates = z[own].clone().requires_grad_(), z.clone().requires_grad_()
    units = prototypes(labels.shape[1], dim).to(DEVICE, dtype).requires_grad_()
    parts = objective(
        anchors,
        candidates,
        labels[own],
        labels,
        first=first,
        settings=LossConfig(implementation=implementation, tile=50, **options),  # type: ignore[arg-type]
        candidate_ids=torch.arange(total, device=DEVICE) // 2,
        prototypes=units,
    )
    assert parts.chosen == implementation
    leaves = (anchors, candidates, units)
    grads = torch.autograd.grad(parts.sum + 0 * units.sum(), leaves)
    return (parts.sum.detach(), *grads)


def agree(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tolerance: float) -> None:
    """Every tensor equal relative to its own norm."""
    for one, other in zip(got, want, strict=True):
        assert float((one - other).norm()) <= tolerance * max(float(other.norm()), 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_agree(shape: str, dtype: torch.dtype) -> None:
    exact = evaluate(shape, torch.float64, "dense", **CONSTANTS)
    for implementation in ("dense", "streamed", *TRITON):
        got = tuple(part.double() for part in evaluate(shape, dtype, implementation, **CONSTANTS))
        agree(got, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_all_losses_agree(flavour: str, dtype: torch.dtype) -> None:
    options = FLAVOURS[flavour]
    exact = evaluate("rectangular", torch.float64, "dense", **options)
    for implementation in ("dense", "streamed", *TRITON):
        got = tuple(part.double() for part in evaluate("rectangular", dtype, implementation, **options))
        agree(got, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_streamed_equals_dense_at_any_tile(name: str) -> None:
    labels = long_tailed(70, 6)
    z = naive.unit(torch.randn(70, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    results = []
    for implementation, tile in [("dense", 1), ("streamed", 3), ("streamed", 7), ("streamed", 64), ("streamed", 500)]:
        leaf = z.clone().requires_grad_()
        parts = run(
            leaf, labels, name=name, implementation=implementation, tile=tile, ids=torch.arange(70) // 2, **CONSTANTS
        )
        results.append((parts.sum.detach(), *torch.autograd.grad(parts.sum, leaf)))
    for total, grad in results[1:]:
        torch.testing.assert_close(total, results[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-12, atol=1e-13)


def test_the_same_call_gives_the_same_bits() -> None:
    one, two = (evaluate("rectangular", torch.float32, "streamed", **CONSTANTS) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_is_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, auto = torch.device("cpu"), LossConfig()
    chosen = {name: choose_implementation(LossConfig(implementation=name), cpu)[0] for name in ("dense", "streamed")}  # type: ignore[arg-type]
    assert chosen == {"dense": "dense", "streamed": "streamed"}
    assert choose_implementation(LossConfig(name="triplet"), cpu) == ("streamed", None)
    pytest.importorskip("triton", reason="Triton exists for Linux only")
    monkeypatch.setattr("marc_dist.objective.kernels.INTERPRETED", False)
    monkeypatch.setattr(global_objective, "_trial", lambda device_type: None)
    assert choose_implementation(auto, cpu) == ("streamed", "it needs an NVIDIA GPU, the vectors are on cpu")
    with pytest.raises(ValueError, match=r"implementation=triton: it needs an NVIDIA GPU.*; use auto"):
        choose_implementation(LossConfig(implementation="triton"), cpu)
    assert choose_implementation(auto, torch.device("cuda")) == ("triton", None)
    monkeypatch.setattr(global_objective, "_trial", lambda device_type: "it was tried and failed: no C compiler")
    assert choose_implementation(auto, torch.device("cuda")) == ("streamed", "it was tried and failed: no C compiler")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_implementation(auto, torch.device("cuda")) == ("streamed", "Triton is not installed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at a machine without a GPU")
def test_the_trial_says_what_failed_and_does_not_raise() -> None:
    reason = global_objective._trial.__wrapped__("cuda")
    assert reason is not None and reason.startswith("it was tried and failed: ") and "\n" not in reason


@pytest.mark.parametrize("num", [0, 1, 40])
def test_sums_of_kinds_as_a_gpu_makes_them(num: int) -> None:
    x, kinds = torch.randn(num, 3, dtype=torch.float64), torch.randint(0, 7, (num,))
    expected = streamed._sums(x, kinds, 7)
    assert expected.shape == (7, 3)
    if num:
        torch.testing.assert_close(streamed._sorted_sums(x, kinds, 7), expected, rtol=1e-14, atol=1e-14)


def reachable(thing: Any, seen: dict[int, Any]) -> int:
    """Bytes of the tensors that an object of ours holds, however deep; ``seen`` keeps every storage once."""
    if id(thing) in seen or isinstance(thing, type):
        return 0
    seen[id(thing)] = thing
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        first = storage.data_ptr() not in seen
        seen[storage.data_ptr()] = storage
        return storage.nbytes() if first else 0
    if isinstance(thing, dict):
        return sum(reachable(value, seen) for value in thing.values())
    if isinstance(thing, list | tuple):
        return sum(reachable(value, seen) for value in thing)
    return reachable(vars(thing), seen) if type(thing).__module__.startswith("marc_dist.") else 0


def kept_bytes(num: int, tile: int, implementation: str = "streamed", **options: Any) -> int:
    """Bytes that autograd keeps for backward, batches of ``num`` rows over 8 label sets."""
    sets = long_tailed(8, 5)
    labels = sets[torch.arange(num) % 8]
    leaf = naive.unit(torch.randn(num, 16, generator=torch.Generator().manual_seed(4))).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        parts = run(leaf, labels, implementation=implementation, tile=tile, **options)
    held = reachable(getattr(parts.sum.grad_fn, "work", None), dict.fromkeys(kept))
    parts.sum.backward()
    return sum(kept.values()) + held


@pytest.mark.parametrize("implementation", ["streamed", *TRITON])
@pytest.mark.parametrize(
    "options", [{}, {"temperature_scope": "per_positive_row"}, {"name": "msc"}, {"name": "supcon_any"}], ids=str
)
def test_memory_kept_for_backward_is_linear_and_free_of_the_tile(options: dict[str, Any], implementation: str) -> None:
    small = kept_bytes(128, 64, implementation, **options)
    assert small == kept_bytes(128, 100, implementation, **options)
    assert 1.8 * small < kept_bytes(256, 64, implementation, **options) <= 2 * small


def test_dense_memory_is_not_linear() -> None:
    """The measurement above would notice."""
    assert kept_bytes(512, 64, "dense") > 3 * kept_bytes(256, 64, "dense")


def test_half_precision_is_raised_to_float32_even_under_autocast() -> None:
    raw, labels = make(MIXED)
    z = naive.unit(raw).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = run(z, labels, **CONSTANTS)
    assert parts.sum.dtype == torch.float32
    exact = run(z.double(), labels, **CONSTANTS)
    assert float(parts.sum) == pytest.approx(float(exact.sum), rel=1e-5)


@pytest.mark.parametrize("name", ["macl", "mulsupcon", "supcon_any"])
def test_bfloat16_embeddings_at_tau_one_hundredth(name: str) -> None:
    """Gradient error against float64 below 1 %; bfloat16 logits miss that: ``benchmarks/loss_precision.py``."""
    generator = torch.Generator().manual_seed(6)
    z = naive.unit(torch.randn(2048, 64, dtype=torch.float64, generator=generator))
    labels = long_tailed(2048, 17) & long_tailed(2048, 17, seed=3)
    options: dict[str, Any] = {"name": name, "tau": 0.01, "t_min": 0.001, "alpha": 0.0, "beta": 0.0}
    grads = []
    for dtype in (torch.float64, torch.bfloat16):
        leaf = z.to(dtype).requires_grad_()
        parts = run(leaf, labels, implementation="streamed", **options)
        (grad,) = torch.autograd.grad(parts.sum, leaf.to(dtype) if leaf.dtype != dtype else leaf)
        grads.append(grad.double())
    error = float((grads[1] - grads[0]).norm() / grads[0].norm())
    assert error < 0.01, f"{name}: {100 * error:.2f} %"


@pytest.mark.parametrize("implementation", ["dense", "streamed", *TRITON])
def test_small_temperatures_do_not_overflow(implementation: str) -> None:
    raw, labels = make(MIXED)
    leaf = naive.unit(raw).float().requires_grad_()
    parts = run(leaf, labels, implementation=implementation, tau=0.001, t_min=0.001, alpha=0.0, beta=0.0)
    (grad,) = torch.autograd.grad(parts.sum, leaf)
    assert torch.isfinite(parts.sum) and torch.isfinite(grad).all()
