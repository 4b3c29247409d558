"""One rank's part of an archive, searched; the only file that names ``faiss``.

A flat search is exact. FAISS, in float32, only proposes candidates; they are scored again in float64 (``exact.py``). An
item that was not proposed scores at most as the last candidate plus the rounding bound: where that reaches the k-th
score, the query is asked again with more candidates, and in the end compared with the whole part. Binary codes are
compared exactly. A factory index finds what it proposes, in order of exact scores. On the CPU a flat index is the array
itself: FAISS reads the memory map in blocks, so an archive may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch  # before faiss: both bring an OpenMP and CUDA runtime, and torch's must be the one that is loaded

# isort: split
import faiss
import numpy as np
from numpy.typing import NDArray

from marc_dist.config import ConfigError, DataError
from marc_dist.retrieval.exact import (
    NONE,
    Float,
    Float32,
    Int,
    Rows,
    best,
    best_with,
    exact_scores,
    exhaustive,
    rounding_bound,
)
from marc_dist.retrieval.index.faiss_messages import reason, warnings_once
from marc_dist.retrieval.index.spec import IndexSpec
from marc_dist.retrieval.index.torch_search import TorchSearch

MARGIN = 32
FACTORY_SHARE = 4  # a factory index is asked for this many times k, and at least for k + 1 + MARGIN
MORE = 8  # growth of the number of candidates where the first ones do not decide
MOST = 2048
"""Candidates of a query, before it is compared with everything; also the most that FAISS finds on a GPU."""
CPU_BLOCK = 1 << 18
GPU_SHARE = 0.8
HALF_BOUND = 1.01 * 2.0**-10
"""Two unit vectors in half precision, their product in float32: 2^-11 of each one's length, and its tiny numbers."""


class Candidates(NamedTuple):
    """Lists of a part: scores (B, w) float64, ids (B, w), and what an approximate index thought of them, or None."""

    scores: Float
    ids: Int
    rough: Float | None = None


def check_spec(spec: IndexSpec, d: int) -> None:
    """Whether FAISS can make this index for vectors of ``d`` numbers; before anything is embedded.

    Raises:
        ConfigError: no such index, or no such parameter.
    """
    if spec.bits is not None and spec.bits > d:
        raise ConfigError(f"eval.index={spec.text}: the vectors have {d} numbers, expected at most {d} bits")
    if spec.kind == "factory":
        _empty(spec, d)


def _empty(spec: IndexSpec, d: int) -> Any:
    try:
        index = faiss.index_factory(d, spec.factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError, AssertionError) as error:
        raise ConfigError(
            f"eval.index={spec.text}: FAISS refuses it for vectors of {d} numbers ({reason(error)}); "
            "expected flat, sign, itq64 or a factory string such as IVF256,PQ32"
        ) from None
    _set(index, spec)
    return index


def _set(index: Any, spec: IndexSpec) -> None:
    """Search parameters; by default an inverted file visits the square root of its lists, not FAISS's single one."""
    space = faiss.ParameterSpace()
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and "nprobe" not in spec.parameters:
        space.set_index_parameter(index, "nprobe", float(max(1, round(lists.nlist**0.5))))
    for name, value in spec.parameters.items():
        try:
            space.set_index_parameter(index, name, value)
        except RuntimeError:
            raise ConfigError(f"eval.index={spec.text}: this index has no search parameter {name!r}") from None


def _read(data: bytes) -> Any:
    return faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))


def _mapped(path: Path, spec: IndexSpec, d: int) -> Any:
    """An index of ``FactoryPart.write``; inverted lists, flat vectors and codes stay in the file where FAISS knows how.

    Raises:
        RuntimeError: not such a file.
    """
    lists = faiss.try_extract_index_ivf(_empty(spec, d)) is not None  # one flag refuses what the other reads
    flag = faiss.IO_FLAG_MMAP if lists else faiss.IO_FLAG_MMAP_IFC
    return faiss.read_index(str(path), flag | faiss.IO_FLAG_READ_ONLY)


def train(spec: IndexSpec, sample: Float32, say: Callable[[str], None] = lambda _: None) -> bytes:
    """What an index must learn from a sample of the whole archive, for ``build``; nothing for a flat one.

    Args:
        spec: which index.
        sample: (n, d) unit vectors.
        say: takes one line for people: each warning of FAISS, once.

    Raises:
        DataError: too few vectors.
    """
    if spec.kind == "flat":
        return b""
    with warnings_once(say):
        return _train(spec, sample)


def _train(spec: IndexSpec, sample: Float32) -> bytes:
    d = sample.shape[1]
    try:
        if spec.kind == "factory":
            index = _empty(spec, d)
            index.train(np.ascontiguousarray(sample))
        elif spec.bits is None:
            centre = faiss.CenteringTransform(d)
            centre.train(np.ascontiguousarray(sample))
            index = faiss.IndexPreTransform(centre, faiss.IndexFlat(d))
        else:
            itq = faiss.ITQTransform(d, spec.bits, True)  # centre, unit length, PCA, then the learnt rotation
            itq.train(np.ascontiguousarray(sample))
            index = faiss.IndexPreTransform(itq, faiss.IndexFlat(spec.bits))
    except RuntimeError as error:
        raise DataError(
            f"eval.index={spec.text}: cannot be trained on {len(sample)} vectors ({reason(error)}); "
            "choose a smaller index, or flat"
        ) from None
    return bytes(faiss.serialize_index(index))


def build(
    spec: IndexSpec,
    trained: bytes,
    features: Rows,
    ids: Int,
    gpu: int | None = None,
    *,
    float16: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> FlatPart | BinaryPart | FactoryPart:
    """An index over one rank's part.

    Args:
        spec: which.
        trained: from ``train``, the same on all ranks.
        features: (n, d) from ``exact_unit``; n may be zero; may be a memory map.
        ids: (n,) sample ids, each at most once over all ranks.
        gpu: search on this GPU; None = on the CPU.
        float16: a GPU keeps a flat archive in half precision.
        say: hears where the search runs.
    """
    if spec.kind == "flat":
        part: FlatPart | BinaryPart | FactoryPart = FlatPart(features, ids, gpu, float16=float16)
    elif spec.kind == "binary":
        part = BinaryPart(Coder(trained), features, ids)
    else:
        part = FactoryPart(spec, trained, features, ids)
    say(f"index: {spec.text}, {part.where}")
    return part


def _cpu() -> str:
    return f"on the CPU (FAISS {faiss.__version__}, {faiss.omp_get_max_threads()} threads)"


class FlatPart:
    """Every vector compared, exact.

    Args:
        features: (n, d) from ``exact_unit``; n may be zero; may be a memory map.
        ids: (n,) sample ids.
        gpu: search on this GPU, if the vectors fit; None = on the CPU.
        float16: a GPU keeps them in half precision; the lists stay exact.

    Attributes:
        where: what searches, for people.
    """

    def __init__(self, features: Rows, ids: Int, gpu: int | None = None, *, float16: bool = False) -> None:
        self.features = features
        self.ids = np.asarray(ids, dtype=np.int64)
        self.bound = rounding_bound(self.features.shape[1]) + (HALF_BOUND if float16 and gpu is not None else 0.0)
        self._propose: Callable[[Float32, int], tuple[Float32, Int]] = self._cpu_search
        self.where = _cpu()
        if gpu is not None and len(self.ids):
            self._to_gpu(gpu, float16)

    def _to_gpu(self, gpu: int, float16: bool) -> None:
        size = self.features.nbytes // (2 if float16 else 1)
        free, _ = torch.cuda.mem_get_info(gpu)
        kind = "float16" if float16 else "float32"
        if size > GPU_SHARE * free:
            self.where += f"; {size / 2**30:.1f} GiB do not fit GPU {gpu}, {free / 2**30:.1f} GiB free"
        elif faiss.get_num_gpus() > 0:
            self._resources = faiss.StandardGpuResources()
            self._resources.setTempMemory(64 << 20)  # faiss would take 1.5 GiB beside torch
            options = faiss.GpuClonerOptions()
            options.useFloat16 = float16
            flat = faiss.IndexFlatIP(self.features.shape[1])
            self._index: Any = faiss.index_cpu_to_gpu(self._resources, gpu, flat, options)
            for start in range(0, len(self.ids), CPU_BLOCK):
                self._index.add(self.features[start : start + CPU_BLOCK])
            self._propose = self._index.search
            self.where = f"on GPU {gpu} (FAISS {faiss.__version__}, {kind})"
        else:
            kept = torch.float16 if float16 else torch.float32
            self._propose = TorchSearch(self.features, torch.device("cuda", gpu), kept)
            self.where = f"on GPU {gpu} (torch, {kind}: this FAISS knows no GPU)"

    def _cpu_search(self, queries: Float32, num: int) -> tuple[Float32, Int]:
        if len(self.ids) <= CPU_BLOCK:
            return _knn(queries, self.features[:], num)
        scores = np.full((len(queries), 0), -np.inf, dtype=np.float32)
        places = np.full((len(queries), 0), NONE, dtype=np.int64)
        for start in range(0, len(self.ids), CPU_BLOCK):
            block = self.features[start : start + CPU_BLOCK]
            more, at = _knn(queries, block, min(num, len(block)))
            scores = np.hstack([scores, more])
            places = np.hstack([places, np.where(at < 0, NONE, at + start)])
            kept = np.argsort(-scores, axis=1, kind="stable")[:, :num]
            scores, places = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(places, kept, axis=1)
        return scores, places

    def space(self, features: Float32) -> Float32:
        """Vectors whose inner products order an archive as this index does."""
        return features

    def search(self, queries: Float32, own_ids: Int, k: int, margin: int = MARGIN) -> Candidates:
        """The k best of this part for each query, without the query's own id, exact.

        Args:
            queries: (B, d) from ``exact_unit``.
            own_ids: (B,) ids to leave out; -1 = none.
            k: wanted; lists of a smaller part are padded with (-inf, -1).
            margin: candidates beyond k + 1 that FAISS is asked for.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, ids = np.full((len(queries), k), -np.inf), np.full((len(queries), k), NONE, dtype=np.int64)
        unsure = np.arange(len(queries))
        ask = k + 1 + margin
        while len(unsure) and ask < len(self.ids) and ask <= MOST:
            asked, own = queries[unsure], own_ids[unsure]
            rough, place = self._propose(asked, ask)
            # k or more items are no worse than the (k + 1)th less the bound: what is clearly below that is not scored
            wide = rough.astype(np.float64)
            hopeful = int((wide >= wide[:, k : k + 1] - 2 * self.bound).sum(axis=1).max())
            place = place[:, :hopeful]
            missing = place < 0  # FAISS pads short lists with -1: gone before -1 becomes the last row of an array
            exact = exact_scores(asked, self.features, place)
            proposed = np.where(missing | (self.ids[place] == own[:, None]), NONE, self.ids[place])
            scores[unsure], ids[unsure] = best(exact, proposed, k)
            unseen = wide[:, -1] + self.bound
            unsure = unsure[(scores[unsure, k - 1] <= unseen) | missing.any(axis=1)]
            ask *= MORE
        if len(unsure):
            scores[unsure], ids[unsure] = exhaustive(queries[unsure], own_ids[unsure], self.features, self.ids, k)
        return Candidates(scores, ids)


def _knn(queries: Float32, archive: Float32, num: int) -> tuple[Float32, Int]:
    # no memory maps: faiss.contrib.torch_utils, which other libraries import, replaces this by one that takes none
    return faiss.knn(np.asarray(queries), np.asarray(archive), num, metric=faiss.METRIC_INNER_PRODUCT)


class Coder:
    """Vectors -> binary codes, one sign a number of the learnt transform (``train``).

    Sign: of the vector less the sample's mean. ITQ: Gong and Lazebnik 2011, after PCA, as FAISS's ITQTransform does it.
    """

    def __init__(self, trained: bytes) -> None:
        self._index = _read(trained)
        self._transform = self._index.chain.at(0)
        self.bits = int(self._transform.d_out)

    def signs(self, features: Float32) -> NDArray[np.bool_]:
        """(n, bits); a zero counts as positive."""
        return np.asarray(self._transform.apply(np.ascontiguousarray(features)) >= 0)

    def codes(self, features: Rows) -> NDArray[np.uint8]:
        """(n, bytes) packed signs; a last byte that is not full ends in zeros."""
        blocks = [
            np.packbits(self.signs(features[at : at + CPU_BLOCK]), axis=1) for at in range(0, len(features), CPU_BLOCK)
        ]
        return np.concatenate([np.empty((0, -(-self.bits // 8)), dtype=np.uint8), *blocks])


class BinaryPart:
    """Binary codes by Hamming distance, ties by id. A score is 1 - 2 x distance / bits.

    Args:
        coder: makes codes of vectors.
        features: (n, d) unit vectors; n may be zero.
        ids: (n,) sample ids.
    """

    def __init__(self, coder: Coder, features: Rows, ids: Int) -> None:
        self.coder = coder
        self.ids = np.asarray(ids, dtype=np.int64)
        codes = coder.codes(features)
        self._index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
        if len(codes):
            self._index.add(codes)
        self.where = f"{coder.bits} bits, {_cpu()}"

    def space(self, features: Float32) -> Float32:
        """Vectors of +1 and -1, whose inner product is bits - 2 x distance."""
        return np.where(self.coder.signs(features), np.float32(1), np.float32(-1))

    def search(self, queries: Float32, own_ids: Int, k: int, margin: int = MARGIN) -> Candidates:
        """See ``FlatPart.search``; of items at equal distance those of lower id come first."""
        codes = self.coder.codes(queries)
        ask = min(k + 1 + margin, len(self.ids))
        if not ask:
            return Candidates(*best(np.empty((len(codes), 0)), np.empty((len(codes), 0), dtype=np.int64), k))
        distance, place = self._index.search(codes, ask)
        found = np.where(self.ids[place] == own_ids[:, None], NONE, self.ids[place])
        scores, ids = best(-distance.astype(np.float64), found, k)
        if ask < len(self.ids):
            for row in np.flatnonzero(-scores[:, k - 1] >= distance[:, -1]).tolist():  # a tie may go on unseen
                radius = int(-scores[row, k - 1]) + 1
                _, far, at = self._index.range_search(codes[row : row + 1], radius)
                here = np.where(self.ids[at] == own_ids[row], NONE, self.ids[at])
                one = best(-far[None].astype(np.float64), here[None], k)
                scores[row], ids[row] = one[0][0], one[1][0]
        return Candidates(1 + 2 * scores / self.coder.bits, ids)


class FactoryPart:
    """Any FAISS index; candidates are scored again in float64. What it does not propose is not found.

    Args:
        spec: the factory string, and its search parameters.
        trained: from ``train``, to which the vectors are added; or a file that ``write`` filled, which has them.
        features: (n, d) from ``exact_unit``.
        ids: (n,) sample ids.
    """

    def __init__(self, spec: IndexSpec, trained: bytes | Path, features: Rows, ids: Int) -> None:
        self.features, self.ids = features, np.asarray(ids, dtype=np.int64)
        self.index = _mapped(trained, spec, features.shape[1]) if isinstance(trained, Path) else _read(trained)
        if not isinstance(trained, Path):
            try:
                for start in range(0, len(ids), CPU_BLOCK):
                    self.index.add(np.ascontiguousarray(features[start : start + CPU_BLOCK]))
            except RuntimeError as error:
                told = f"eval.index={spec.text}: takes no vectors ({reason(error)}); choose another"
                raise DataError(told) from None
        _set(self.index, spec)
        self._text = spec.text
        self.where = f"approximate, {_cpu()}"

    def write(self, put: Callable[[bytes], object]) -> None:
        """Hand over the index with its vectors piece by piece; a file of them may stand for ``trained``."""
        faiss.write_index(self.index, faiss.PyCallbackIOWriter(put, 1 << 20))  # type: ignore[attr-defined]

    def search(self, queries: Float32, own_ids: Int, k: int, margin: int = MARGIN) -> Candidates:
        """The best that the index proposes, with its own (rough) scores; lists are longer than k, see ``top_k``.

        Args:
            queries: (B, d) from ``exact_unit``.
            own_ids: (B,) ids to leave out; -1 = none.
            k: wanted in the end; ``FACTORY_SHARE`` times as many are proposed.
            margin: the least number of candidates beyond k + 1.
        """
        ask = max(FACTORY_SHARE * k, k + 1 + margin)
        if not len(self.ids):
            nothing = np.full((len(queries), ask - 1), -np.inf)
            return Candidates(nothing, np.full(nothing.shape, NONE, dtype=np.int64), nothing)
        try:
            rough, place = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), ask)
        except RuntimeError as error:
            raise DataError(f"eval.index={self._text}: cannot search ({reason(error)}); choose another") from None
        ids = np.where((place < 0) | (self.ids[place] == own_ids[:, None]), NONE, self.ids[place])
        exact = exact_scores(queries, self.features, place)
        wide = rough.astype(np.float64)
        if self.index.metric_type != faiss.METRIC_INNER_PRODUCT:  # some transforms end in L2
            wide = -wide
        wide, ids, exact = best_with(wide, ids, ask - 1, exact)  # as many, whether this part holds the query or not
        return Candidates(exact, ids, wide)
