"""Every kind of index: words, candidates by FAISS and torch, binary codes, factory strings; on one rank and several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from marc_dist import comm
from marc_dist.config import ConfigError, DataError
from marc_dist.data.plan import rank_part
from marc_dist.retrieval import search
from marc_dist.retrieval.exact import exact_unit
from marc_dist.retrieval.index import parts as ix
from marc_dist.retrieval.index import torch_search
from marc_dist.retrieval.index.spec import parse_spec
from tests.retrieval.clouds import cloud, naive, naive_hamming
from tests.worlds import run_in_world

IDS = np.arange(900, dtype=np.int64) * 2 + 1


def archive(word: str = "flat") -> np.ndarray:
    """Copies are ties, and those of a rough score at the end of a list fall as FAISS likes: none for factory words."""
    return cloud(900, 16, 21, 200 if parse_spec(word).exact else 0)


def make(word: str, said: list[str] | None = None) -> search.Part:
    x = archive(word)
    mine = rank_part(IDS, comm.rank(), comm.world())
    tell = (lambda _: None) if said is None else said.append
    return search.make_part(parse_spec(word), lambda ids: x[(ids - 1) // 2], IDS, mine, None, float16=False, say=tell)


def lists(word: str, k: int = 12) -> tuple[bytes, list[list[int]]]:
    x = archive(word)
    scores, ids = search.top_k(make(word), x[:60], IDS[:60], k)
    return scores.tobytes(), ids.tolist()


def test_words() -> None:
    assert parse_spec(" FLAT ").kind == "flat" and parse_spec("flat").exact
    sign, itq = parse_spec("sign"), parse_spec("ITQ64")
    assert sign.kind == itq.kind == "binary" and sign.bits is None and itq.bits == 64 and itq.exact
    spec = parse_spec("IVF16,PQ8:nprobe=4, ht=3")
    assert spec.factory == "IVF16,PQ8" and spec.parameters == {"nprobe": 4.0, "ht": 3.0} and not spec.exact
    for word, told in {
        "": "expected flat, sign, itq64 or a FAISS",
        "itq12": "multiple of 8 bits",
        "flat:nprobe=2": "takes no parameters",
        "IVF4,Flat:nprobe": "name=number",
        "IVF0,Flat": "expected 1 list or more, got 0",
        "OPQ4,IVF0,Flat": "expected 1 list or more, got 0",
        "IVF4,Flat:nprobe=x": "name=number",
        "IVF4,Flat:nprobe=0": "above 0, got 'nprobe=0'",
        "IVF4,Flat:nprobe=nan": "above 0",
        "IVF4,Flat:nprobe=1e30": "above 0",
        "IDMap,Flat": "without IDMap",
        "HNSW0": "a graph of one edge or more",
    }.items():
        with pytest.raises(ConfigError, match=told):
            parse_spec(word)


def test_what_faiss_cannot_make_is_told_before_anything_is_embedded() -> None:
    for word, told in {
        "NOPE": "FAISS refuses it for vectors of 16 numbers .could not parse index string NOPE",
        "IVF4,PQ3": "should be a multiple of the number of subquantizers",
        "itq24": "at most 16 bits",
        "HNSW8:nprobe=3": "no search parameter 'nprobe'",
    }.items():
        with pytest.raises(ConfigError, match=told):
            ix.check_spec(parse_spec(word), 16)
    for word in ("flat", "sign", "itq16", "IVF4,PQ4:nprobe=2", "HNSW8:efSearch=40"):
        ix.check_spec(parse_spec(word), 16)
    with pytest.raises(DataError, match="cannot be trained on 900 vectors .Number of training points"):
        make("IVF2000,Flat")


@pytest.mark.parametrize("block", [7, 100, 899])
def test_a_part_is_searched_block_by_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ix, "CPU_BLOCK", block)
    monkeypatch.setattr(ix, "exhaustive", None)
    x, queries = cloud(900, 16, 5), cloud(20, 16, 6)
    _, found, _ = ix.FlatPart(x, IDS).search(queries, np.full(20, -1), 12)
    assert found.tolist() == naive(queries, IDS, x, np.full(20, -1), 12)


def test_a_query_that_stays_unsure_is_asked_again_with_more_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    x, asked = cloud(900, 16, 5), []
    x[100:160] = x[3]  # more copies than the margin: only longer lists tell where the tie ends
    knn = faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda q, a, num, **how: asked.append((len(q), num)) or knn(q, a, num, **how))
    monkeypatch.setattr(ix, "exhaustive", None)
    queries = np.concatenate([cloud(5, 16, 6), x[3:4]])
    _, found, _ = ix.FlatPart(x, IDS).search(queries, np.full(6, -1), 12, margin=4)
    assert found.tolist() == naive(queries, IDS, x, np.full(6, -1), 12)
    assert asked == [(6, 17), (1, 136)]


def test_a_memory_map_is_not_copied(tmp_path: object) -> None:
    path = f"{tmp_path}/x.npy"
    np.save(path, archive())
    mapped = np.load(path, mmap_mode="r")
    assert np.shares_memory(ix.FlatPart(mapped, IDS).features, mapped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_candidates_by_torch_give_the_same_lists(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU that this FAISS does not know, here on the CPU; half precision keeps the lists exact."""
    monkeypatch.setattr(torch_search, "BLOCK", 250)
    x = archive()
    part = ix.FlatPart(x, IDS)
    part._propose = torch_search.TorchSearch(x, torch.device("cpu"), dtype)
    part.bound += ix.HALF_BOUND if dtype is torch.float16 else 0.0
    _, found, _ = part.search(x[:60], IDS[:60], 12, margin=4)
    assert found.tolist() == naive(x[:60], IDS, x, IDS[:60], 12)


def test_near_copies_beside_half_precision() -> None:
    """300 vectors so near to each other that their products in half precision would be a handful of numbers."""
    rng = np.random.default_rng(3)
    x = exact_unit(np.ones((300, 64)) + 1e-3 * rng.standard_normal((300, 64)))
    ids = np.arange(300, dtype=np.int64)
    part = ix.FlatPart(x, ids)
    part._propose = torch_search.TorchSearch(x, torch.device("cpu"), torch.float16)
    part.bound += ix.HALF_BOUND
    nobody = np.full(300, -1)
    rough, place = part._propose(x, 200)
    exact = np.take_along_axis(x.astype(np.float64) @ x.astype(np.float64).T, place, axis=1)
    assert np.abs(rough - exact).max() < part.bound
    for k in (1, 9):
        assert part.search(x, nobody, k, margin=2).ids.tolist() == naive(x, ids, x, nobody, k)


def test_an_empty_part_has_nothing() -> None:
    nothing, x = np.empty((0, 16), dtype=np.float32), cloud(5, 16, 1)
    for word in ("flat", "sign", "HNSW8"):
        spec = parse_spec(word)
        part = ix.build(spec, ix.train(spec, cloud(40, 16, 2)), nothing, IDS[:0])
        scores, ids, _ = part.search(x, np.full(5, -1), 3)
        assert (ids == -1).all() and np.isneginf(scores).all() and scores.shape[0] == 5


@pytest.mark.parametrize("word", ["sign", "itq8", "itq16"])
def test_binary_codes_against_counting_bits(word: str) -> None:
    """Few bits: ties everywhere, far beyond any margin."""
    x = archive()
    part = make(word)
    assert isinstance(part, ix.BinaryPart)
    codes = part.coder.signs(x)
    assert codes.shape == (900, 8 if word == "itq8" else 16)
    for margin in (0, 32):
        scores, found, _ = part.search(x[:60], IDS[:60], 12, margin)
        assert found.tolist() == naive_hamming(codes[:60], IDS, codes, IDS[:60], 12)
    bits = codes.shape[1]
    far = (codes[0] != codes[(found[0, 0] - 1) // 2]).sum()
    assert scores[0, 0] == 1 - 2 * far / bits
    space = part.space(x[:5])
    assert np.array_equal(space @ space.T, bits - 2 * (codes[:5, None] != codes[None, :5]).sum(axis=2))


def test_sign_codes_are_centred_and_padded() -> None:
    x = cloud(300, 12, 3) + np.float32(0.3)
    part = ix.BinaryPart(ix.Coder(ix.train(parse_spec("sign"), x)), x, np.arange(300))
    codes = part.coder.signs(x)
    assert np.array_equal(codes, x - x.mean(axis=0) >= 0) and part.coder.codes(x).shape == (300, 2)
    _, found, _ = part.search(x[:9], np.arange(9), 7)
    assert found.tolist() == naive_hamming(codes[:9], np.arange(300), codes, np.arange(9), 7)


@pytest.mark.parametrize("word", ["IVF8,Flat:nprobe=8", "SQ8", "HNSW16:efSearch=200"])
def test_a_factory_index_that_sees_everything_is_exact(word: str) -> None:
    x = cloud(900, 16, 5)
    part = ix.FactoryPart(parse_spec(word), ix.train(parse_spec(word), x), x, IDS)
    _, ids = search.top_k(part, x[:40], IDS[:40], 12)
    assert ids.tolist() == naive(x[:40], IDS, x, IDS[:40], 12)


def test_candidates_of_a_rough_index_are_ordered_exactly() -> None:
    x = cloud(900, 16, 5)
    part = ix.FactoryPart(parse_spec("PQ4x4"), ix.train(parse_spec("PQ4x4"), x), x, IDS)
    scores, ids = search.top_k(part, x[:40], IDS[:40], 12)
    exact = (x[:40, None].astype(np.float64) * x[(ids - 1) // 2].astype(np.float64)).sum(axis=2)
    assert np.array_equal(scores, exact) and (np.diff(scores, axis=1) <= 0).all()
    assert 0.3 < search.recall(x, IDS, x[:40], IDS[:40], ids, 12, None) < 1.0


def test_a_default_of_more_than_one_list(tmp_path: Path) -> None:
    spec, x = parse_spec("IVF1k,Flat"), cloud(1024, 4, 0)
    assert ix.FactoryPart(spec, ix.train(spec, x), x, np.arange(1024)).index.nprobe == 32
    part = make("IVF16,Flat")
    assert isinstance(part, ix.FactoryPart) and part.index.nprobe == 4
    spec = parse_spec("IVF16,Flat:nprobe=3")
    with (tmp_path / "x.faiss").open("wb") as file:
        part.write(file.write)
    again = ix.FactoryPart(spec, tmp_path / "x.faiss", archive(), IDS)
    assert again.index.nprobe == 3 and again.index.ntotal == 900


def test_recall_counts_shared_answers() -> None:
    x = archive()
    _, listed = search.top_k(ix.FlatPart(x, IDS), x[:60], IDS[:60], 10)
    assert search.recall(x, IDS, x[:60], IDS[:60], listed, 10, None) == 1.0
    wrong = listed.copy()
    wrong[:, 5:] = -1
    assert search.recall(x, IDS, x[:60], IDS[:60], wrong, 10, None) == 0.5


def test_where_it_searches_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    make("PQ4", said)
    assert said[0].startswith("FAISS: WARNING clustering 900 points to 256 centroids")
    assert said[-1].startswith("index: PQ4, approximate, on the CPU (FAISS ") and len(said) == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("word", ["flat", "sign", "itq8", "IVF8,Flat:nprobe=3", "IVF4,PQ4", "SQ4"])
def test_lists_of_several_ranks_are_those_of_one(word: str) -> None:
    alone = lists(word)
    for world in (2, 4) if word == "flat" else (3,):
        assert run_in_world(lists, world, word) == [alone] * world


def refused() -> str:
    try:
        make("IVF2000,Flat")
    except DataError as error:
        return str(error)
    return ""


def test_an_index_that_cannot_be_trained_is_refused_on_all_ranks() -> None:
    assert all("cannot be trained on 900 vectors" in told for told in run_in_world(refused, 2))


def test_memory_maps_are_searched_whoever_else_uses_faiss(tmp_path: Path) -> None:
    """faiss.contrib.torch_utils, which other libraries import, takes plain arrays only."""
    code = f"""
import faiss.contrib.torch_utils, numpy as np
from marc_dist.retrieval.index import parts as index
rows = np.lib.format.open_memmap({str(tmp_path / "rows.npy")!r}, mode="w+", dtype=np.float32, shape=(5, 4))
rows[:] = np.eye(5, 4)
print(index._knn(rows[:2], rows, 1)[1].ravel().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[0, 1]", done.stderr
