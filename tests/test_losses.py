"""The loss modules in other people's loops: alone, and under a process group that somebody else made."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from marc_dist import comm, losses
from marc_dist.config import ConfigError, LossConfig
from marc_dist.config.loss import READ_BY_ALL, READS
from marc_dist.objective import LabelStatistics, global_objective, label_statistics
from tests.objective import naive
from tests.objective.cases import MIXED, everything, long_tailed, make
from tests.worlds import run_in_world

ROWS, FEATURES, WIDTH, LABELS = 24, 6, 5, 4
LAYOUTS = ([24], [13, 11], [24, 0], [5, 12, 7], [9, 0, 15])
CLASSES = {getattr(losses, name).name: getattr(losses, name) for name in losses.__all__}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CLASSES),
    ("macl", {"temperature_scope": "per_positive_row", "weight_norm": "sum_to_one", "implementation": "dense"}),
    ("macl", {"statistics": label_statistics(long_tailed(90, LABELS, seed=4))}),
    ("triplet", {"selection": "diverse", "num_selected": 2}),
]


def build(name: str, options: dict[str, Any]) -> nn.Module:
    module: nn.Module = CLASSES[name](*((LABELS, WIDTH) if name == "msc" else ()), **options)
    return module.double() if name == "msc" else module


def model(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, WIDTH)).double()


def batch(name: str) -> tuple[Tensor, Tensor]:
    """Inputs and what a loss takes as labels, of the whole batch; common labels first, so that ranks differ."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(ROWS, FEATURES, dtype=torch.float64, generator=generator)
    labels = long_tailed(ROWS, LABELS)
    labels = labels[torch.argsort(labels.sum(dim=1), stable=True)]
    targets = {
        "ntxent": torch.arange(ROWS) % (ROWS // 2),
        "supcon_single": nn.functional.one_hot(torch.arange(ROWS) // 4 % LABELS, LABELS),
    }
    return inputs, targets.get(name, labels)


def gradients(name: str, options: dict[str, Any], rows: slice, *, wrap: bool, wrap_loss: bool) -> dict[str, Any]:
    """Value and gradients of one step with some rows of the batch."""
    inputs, targets = batch(name)
    network, loss = model(), build(name, options)
    held = nn.ModuleDict({"network": network, "loss": loss})
    called = DistributedDataParallel(network) if wrap else network
    judge = DistributedDataParallel(loss) if wrap_loss else loss
    value = judge(called(inputs[rows]), targets[rows])
    value.backward()
    grads = {key: parameter.grad.clone() for key, parameter in held.named_parameters()}  # type: ignore[union-attr]
    return {"value": value.detach(), **grads}


def _end() -> None:
    dist.barrier()
    dist.destroy_process_group()


def _under_a_foreign_group(layout: list[int], store: str) -> list[dict[str, Any]]:
    rank = comm.rank()
    comm.barrier()  # nobody leaves before all have met
    comm.leave()
    if len(layout) > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(layout))
        assert comm.join("cpu") == (rank, len(layout), rank)
    rows = slice(sum(layout[:rank]), sum(layout[: rank + 1]))
    parallel = len(layout) > 1
    found = []
    for name, options in VARIANTS:
        for wrap_loss in [False, True] if parallel and name == "msc" else [False]:
            found.append(gradients(name, options, rows, wrap=parallel, wrap_loss=wrap_loss))
    comm.leave()
    assert dist.is_initialized() == parallel, "a group that somebody else made is theirs to end"
    if parallel:
        _end()
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_together_have_the_gradient_of_one_process(layout: list[int], tmp_path: Path) -> None:
    everyone = run_in_world(_under_a_foreign_group, len(layout), layout, str(tmp_path / "store"))
    for found in everyone:
        step = iter(found)
        for name, options in VARIANTS:
            for _ in range(2 if len(layout) > 1 and name == "msc" else 1):
                want = gradients(name, options, slice(None), wrap=False, wrap_loss=False)
                got = next(step)
                assert got.keys() == want.keys()
                for key, value in want.items():
                    assert float((got[key] - value).norm()) <= 1e-10 * float(value.norm()), (name, key)
    for first, *others in zip(*everyone, strict=True):
        assert all(torch.equal(first["value"], other["value"]) for other in others)


class _Broken(nn.Parameter):
    """A tensor that fails in a way that nobody foresaw."""

    @property
    def is_nested(self) -> bool:
        raise KeyError("is_nested")


def _one_rank_errs(store: str) -> list[str]:
    rank = comm.rank()
    comm.barrier()  # nobody leaves before all have met
    comm.leave()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, 3, generator=generator, requires_grad=True)
    labels = torch.ones(4, 2, dtype=torch.int64)
    other = {
        "label": (z, 2 * labels),
        "rows": (z, labels[:3]),
        "width": (z[:, :2], labels),
        "type": (z.double(), labels),
        "gradient": (z.detach(), labels),
        "array": (z.detach().numpy(), labels),
        "list": (z, labels.tolist()),
        "nothing": (None, None),
        "sparse": (z, labels.to_sparse()),
        "nested": (torch.nested.nested_tensor([z.detach()[0], z.detach()[1, :2]], layout=torch.jagged), labels),
        "other device": (z, labels.to("meta")),
        "no numbers": (z.to("meta"), labels.to("meta")),
        "no columns": (z[:, :0], labels[:, :0]),
        "a fault of another kind": (z, _Broken(torch.ones(1))),
    }
    said = []
    for one in other.values():
        try:
            losses.MaclLoss()(*(one if rank else (z, labels)))
            said.append("nothing")
        except (ValueError, KeyError) as error:
            said.append(str(error))
    said.append(_one_rank_lacks_triton(z, labels))
    _end()
    return said


def _one_rank_lacks_triton(z: Tensor, labels: Tensor) -> str:
    """What ``implementation`` asks for is looked at before ranks wait for each other, too."""
    global_objective.why_not = lambda *_, **__: "no GPU here"
    try:
        losses.MaclLoss(implementation="triton" if comm.rank() else "auto")(z, labels)
    except ValueError as error:
        return str(error)
    return "nothing"


def test_when_one_rank_errs_all_raise_and_none_waits(tmp_path: Path) -> None:
    here, there = run_in_world(_one_rank_errs, 2, str(tmp_path / "store"), limit_s=60)
    assert there[:2] == [
        "labels: expected 0 or 1, got 2 in row 0, label 0",
        "labels: expected 4 rows like the embeddings, got 3",
    ]
    assert here[:2] == ["rank 1: its rows do not fit, see its own error"] * 2
    for place, what in enumerate(
        ["columns of embeddings: expected one on all ranks, got 3 here, 2", "float64", "requ"]
    ):
        assert here[2 + place].startswith(what) and there[2 + place] != "nothing"
    assert there[5:] == [
        "embeddings: expected a torch tensor, got ndarray; use torch.as_tensor",
        "labels: expected a torch tensor, got list; use torch.as_tensor",
        "embeddings: expected a torch tensor, got NoneType; use torch.as_tensor",
        "labels: expected a dense tensor, got torch.sparse_coo; use labels.to_dense()",
        "embeddings: expected a dense tensor, got a nested one; use embeddings.to_padded_tensor(0)",
        "labels: expected a tensor with numbers in it, got one on the device meta",
        "embeddings: expected a tensor with numbers in it, got one on the device meta",
        "embeddings: expected one column or more, got shape (4, 0)",
        "'is_nested'",
        "implementation=triton: no GPU here; use auto or streamed",
    ]
    assert here[5:] == ["rank 1: its rows do not fit, see its own error"] * 10


@pytest.mark.parametrize("name", ["macl", "triplet", "msc"])
@pytest.mark.parametrize(("dtype", "lengths"), [(torch.float32, (1e-30, 1e30)), (torch.float64, (1e-200, 1e200))])
def test_rows_of_any_length_have_their_direction(name: str, dtype: torch.dtype, lengths: tuple[float, float]) -> None:
    """Squares of such numbers are 0 or infinite; a row of zeros has no direction and stays zero."""
    inputs, labels = batch("macl")
    rows = inputs[:, :WIDTH].to(dtype)
    rows[5] = 0
    loss = build(name, {}).to(dtype)
    scaled = rows * torch.tensor(lengths, dtype=dtype)[torch.arange(ROWS) % 2][:, None]
    scaled.requires_grad_()
    value = loss(scaled, labels)
    torch.testing.assert_close(value, loss(rows, labels))
    assert float(value.detach()) > 0.1 and bool(torch.autograd.grad(value, scaled)[0].isfinite().all())
    if name == "msc":
        with torch.no_grad():
            loss.prototypes.mul_(lengths[0])  # type: ignore[operator]
        torch.testing.assert_close(loss(rows, labels), value.detach())


def test_lengths_that_float32_squares_well_change_no_bit() -> None:
    rows, labels = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)), batch("macl")[1]
    unit = nn.functional.normalize(rows, dim=1)
    assert torch.equal(losses._directions(rows), unit)
    assert torch.equal(losses.MaclLoss()(rows, labels), losses.MaclLoss()(2.0**90 * rows, labels))


def test_a_row_that_is_not_finite_makes_the_loss_nan() -> None:
    rows, labels = torch.randn(ROWS, WIDTH), batch("macl")[1]
    for value in (torch.nan, torch.inf):
        rows[3, 1] = value
        assert losses.MaclLoss()(rows, labels).isnan()


def test_macl_alone_is_the_naive_loops() -> None:
    raw, labels = make(MIXED)
    raw.requires_grad_()
    total, count = naive.macl(naive.unit(raw), labels, everything(tau=0.3, beta=0.9))
    (want,) = torch.autograd.grad(total / count, raw)
    value = losses.MaclLoss(tau=0.3, beta=0.9)(raw, labels.float())
    (got,) = torch.autograd.grad(value, raw)
    torch.testing.assert_close(value, (total / count).detach())
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", CLASSES)
def test_every_loss_of_the_schema_has_a_class_that_shows_what_it_reads(name: str) -> None:
    made = build(name, {})
    keys = set(inspect.signature(type(made)).parameters) - {"statistics", "num_labels", "width", "seed"}
    assert keys == {*READS[name], *READ_BY_ALL} - {"counts"}  # type: ignore[index]
    assert made.settings == LossConfig(name=name)  # type: ignore[arg-type]
    shown = repr(made)
    assert shown.startswith(type(made).__name__) and all(f"{key}=" in shown for key in keys)
    assert set(CLASSES) == set(READS)


def test_settings_that_do_not_fit_are_one_line() -> None:
    made: list[tuple[Any, str]] = [
        (lambda: losses.MaclLoss(tau=-1), "MaclLoss: tau: expected greater than 0, got -1"),
        (lambda: losses.MaclLoss(aggregate="mean"), "MaclLoss: aggregate: expected 'pair_mean', 'anchor_mean' or "),
        (lambda: losses.MaclLoss(tua=0.1), "MaclLoss: tua: unknown key; did you mean tau?"),
        (lambda: losses.MaclLoss(clip_min=3.0, clip_max=2.0), "MaclLoss: clip_min must not exceed clip_max"),
        (lambda: losses.MaclLoss(name="msc"), "MaclLoss: name: the class says"),
        (lambda: losses.MaclLoss(memory=10), "MaclLoss: memory: only marc-train"),
        (lambda: losses.SupConAnyLoss(alpha=0.5), "SupConAnyLoss: alpha: not read by this loss; it reads tau, impl"),
        (lambda: losses.SupConAnyLoss(statistics=label_statistics(torch.eye(2))), "SupConAnyLoss: statistics: not"),
        (
            lambda: losses.SupConAnyLoss(temperature=0.1),
            "SupConAnyLoss: temperature: unknown key; this loss reads tau, ",
        ),
        (
            lambda: losses.MultiSupConLoss(treshold=0.1),
            "MultiSupConLoss: treshold: unknown key; did you mean threshold?",
        ),
        (lambda: losses.MaclLoss(tau=True), "MaclLoss: tau: expected a number, got True"),
        (lambda: losses.MaclLoss(tau=torch.tensor(True)), "MaclLoss: tau: expected a number, got tensor(True)"),
        (lambda: losses.TripletLoss(num_selected=np.True_), "TripletLoss: num_selected: expected a number, got"),
        (lambda: losses.MscLoss("a", 3), "MscLoss: num_labels: expected a whole number of 1 or more, got 'a'"),  # type: ignore[arg-type]
        (lambda: losses.MscLoss(5.0, 4), "MscLoss: num_labels: expected a whole number of 1 or more, got 5.0"),  # type: ignore[arg-type]
        (lambda: losses.MscLoss(0, 3), "MscLoss: num_labels: expected a whole number of 1 or more, got 0"),
        (lambda: losses.MscLoss(3, True), "MscLoss: width: expected a whole number of 1 or more, got True"),
        (lambda: losses.MscLoss(3, 1 << 70), "MscLoss: width: expected a whole number of 1 or more, got 1180"),
        (lambda: losses.MscLoss(3, 4, seed=-1), "MscLoss: seed: expected a whole number of 0 or more, got -1"),
        (lambda: losses.MaclLoss(statistics=torch.ones(3)), "MaclLoss: statistics: expected what label_statistics(lab"),  # type: ignore[arg-type]
        (lambda: losses.MaclLoss(statistics=(torch.ones(1), torch.ones(1, 1))), "MaclLoss: statistics: expected what "),  # type: ignore[arg-type]
        (
            lambda: losses.MaclLoss(statistics=LabelStatistics(torch.ones(2) / 2, torch.ones(2, 2))),
            "MaclLoss: statistics.counts: expected whole numbers of 0 or more, got 0.5",
        ),
    ]
    for make_one, words in made:
        with pytest.raises(ConfigError) as raised:
            make_one()
        assert str(raised.value).startswith(words) and "\n" not in str(raised.value)


def test_a_setting_that_nothing_reads_beside_the_others_is_told() -> None:
    with pytest.warns(UserWarning, match="^MaclLoss: gamma has no effect with these settings$"):
        losses.MaclLoss(strength=0.0, gamma=2.0)
    with pytest.warns(UserWarning, match="^MaclLoss: gamma, clip_max have no effect with these settings$"):
        losses.MaclLoss(strength=0.0, gamma=2.0, clip_max=5.0)


def test_batches_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_objective, "why_not", lambda *_, **__: "no GPU here")
    z, labels = torch.randn(4, 3), torch.ones(4, 2)
    given: list[tuple[nn.Module, Tensor, Tensor, str]] = [
        (losses.MaclLoss(), z, 0.7 * labels, "labels: expected 0 or 1, got 0.7 in row 0, label 0"),
        (losses.MaclLoss(), z, labels[:, 0], r"labels: expected a \(rows, labels\) tensor.*one_hot"),
        (losses.MaclLoss(), z.long(), labels, r"embeddings: expected a \(rows, width\) tensor of floats"),
        (losses.NTXentLoss(), z, labels, r"ids: expected \(rows,\) whole numbers"),
        (losses.MscLoss(2, 4), z, labels, r"expected \(2, 4\) columns like the prototypes, got \(2, 3\)"),
        (losses.MaclLoss(statistics=label_statistics(torch.eye(3))), z, labels, "statistics: expected shapes"),
        (losses.SupConSingleLoss(), z, labels, "labels: expected at most one label a row, got 2 in row 0; supcon_any"),
        (losses.MaclLoss(), z, labels[:, :0], r"labels: expected one column or more, got shape \(4, 0\)"),
        (losses.NTXentLoss(), z[:, :0], torch.arange(4), "embeddings: expected one column or more"),
        (losses.NTXentLoss(), z, [0, 0, 1, 1], "ids: expected a torch tensor, got list; use torch.as_tensor"),
        (losses.NTXentLoss(), z, torch.arange(4).to("meta"), "ids: expected a tensor with numbers in it"),
        (losses.MscLoss(2, 3).to("meta"), z, labels, "prototypes: expected on cpu like the embeddings, got meta"),
        (losses.MaclLoss(implementation="triton"), z, labels, "^implementation=triton: no GPU here; use auto or str"),
    ]
    for module, embeddings, told, words in given:
        with pytest.raises(ValueError, match=words):
            module(embeddings, told)


def test_state_is_what_training_changes_or_cannot_find_again() -> None:
    assert losses.MaclLoss().state_dict() == {}
    seen = LabelStatistics(torch.tensor([5.0, 3.0]), torch.tensor([[5.0, 2.0], [2.0, 3.0]]))
    made = losses.MaclLoss(statistics=seen).half()
    assert {key: value.tolist() for key, value in made.state_dict().items()} == {
        "label_counts": [5, 3], "label_pairs": [[5, 2], [2, 3]]
    }  # fmt: skip
    assert "counts='train'" in repr(made)
    one, two, three = losses.MscLoss(4, 5), losses.MscLoss(4, 5), losses.MscLoss(4, 5, seed=1)
    assert torch.equal(one.prototypes, two.prototypes) and not torch.equal(one.prototypes, three.prototypes)
    three.load_state_dict(copy.deepcopy(one).state_dict())
    assert torch.equal(one.prototypes, three.prototypes)


def test_the_loss_is_float32_under_autocast_and_for_half_precision() -> None:
    z = torch.nn.functional.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(2)), dim=1).bfloat16()
    labels = long_tailed(64, 4)
    loss = losses.MaclLoss(tau=0.02)
    want = loss(z.double(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(z, labels)
    assert got.dtype == torch.float32 and want.dtype == torch.float64
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
