"""The last step of a batch, in the training process: augment on the device that trains, or take what workers made.

On a GPU that is the rule: one thread works a batch ahead on a stream of its own, so that the encoder does not wait.
Pictures that fit lie in its memory from the start. On a CPU the workers augment, because the cores are the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from marc_dist.augment.views import PixelScale
from marc_dist.config import Config
from marc_dist.data.batches import Batch, Pictures, augmented, stack
from marc_dist.data.cache import DecodedCache

S = TypeVar("S")
R = TypeVar("R")
SHARE = 0.25  # of a GPU's free memory that pictures may take; the rest is the encoder's
PART = 256  # pictures uploaded at a time


class BatchAugmenter:
    """What comes from workers to batches.

    Args:
        config: the run's settings.
        device: where the encoder runs.
        cache: of decoded pictures, if there is one.
        tick: called now and then while pictures are uploaded.
        scale: what the encoder expects.

    Attributes:
        wants: of the workers: finished ``images``; ``pixels``, to be augmented here; or nothing but ``rows`` of the
            pictures that are held here.
        note: one line for people.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        cache: DecodedCache | None,
        tick: Callable[[], None],
        scale: PixelScale,
    ) -> None:
        self.scale = scale
        self.image_size = config.data.image_size
        if device.type == "cuda" and device.index is None:  # a thread does not inherit the current device
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.wants: Literal["images", "pixels", "rows"] = "images"
        self.note = "augmented by the loader's processes"
        self._cache: DecodedCache | None = None
        self._held: tuple[Tensor | None, Tensor | None] = None, None
        if config.data.augment_on == "device" or (config.data.augment_on == "auto" and device.type == "cuda"):
            self.wants = "pixels"
            self.note = f"augmented on {device}, batch by batch"
            if cache is not None:
                self._hold(cache, tick)

    def _hold(self, cache: DecodedCache, tick: Callable[[], None]) -> None:
        self.wants = "rows"
        if self.device.type != "cuda":
            self._cache = cache
            return
        num, *shape = cache.shape
        size, free = num * math.prod(shape) * cache.dtype.itemsize, torch.cuda.mem_get_info(self.device)[0]
        if size > SHARE * free:
            self.wants = "pixels"
            self.note += (
                f"; they are sent step by step, for they take {size / 1e9:.1f} GB and "
                f"{SHARE:.0%} of the GPU's free memory is {SHARE * free / 1e9:.1f} GB"
            )
            return
        kind = torch.from_numpy(np.empty(0, cache.dtype)).dtype
        pixels = torch.empty((num, *shape), dtype=kind, device=self.device)
        for start in range(0, num, PART):
            pixels[start : start + PART] = torch.from_numpy(cache.block(start, min(start + PART, num))).to(self.device)
            tick()
        torch.cuda.synchronize(self.device)
        self.note += f"; its memory holds all pictures, {size / 1e9:.2f} GB"
        self._held = pixels, torch.from_numpy(cache.sizes.copy())

    def finish(self, results: Iterator[Batch | Pictures]) -> Iterator[Batch]:
        """Batches of what workers made, in order."""
        return one_ahead(results, self._on_gpu()) if self.device.type == "cuda" else map(self._batch, results)

    def _batch(self, result: Batch | Pictures) -> Batch:
        if isinstance(result, Batch):
            return result
        if self._cache is not None:
            there, extents = stack([self._cache.picture(sample) for sample in result.ids.tolist()])
            result = replace(result, pixels=there, sizes=extents, rows=list(range(len(result.rows))))
        pixels, sizes = self._held
        if pixels is None and result.pixels is not None:
            pixels, sizes = result.pixels.to(self.device), result.sizes
        return augmented(result, self.image_size, self.scale, pixels, sizes)

    def _on_gpu(self) -> Callable[[Batch | Pictures], Callable[[], Batch]]:
        """Work for the thread ahead; what it returns is called by the main thread, on the stream that trains."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

        def work(result: Batch | Pictures) -> Callable[[], Batch]:
            with torch.cuda.device(self.device), torch.cuda.stream(stream):
                batch = self._batch(result)
                ready = stream.record_event()

            def take() -> Batch:
                current = torch.cuda.current_stream(self.device)
                current.wait_event(ready)
                if batch.images.is_cuda:
                    batch.images.record_stream(current)
                return batch

            return take

        return work


def one_ahead(items: Iterator[S], work: Callable[[S], Callable[[], R]]) -> Iterator[R]:
    """``work(item)()`` of each item: the outer call one item ahead in a thread, the inner one here, in order."""

    def step() -> Callable[[], R] | None:
        for item in items:
            return work(item)
        return None

    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(step)
        while (take := coming.result()) is not None:
            coming = pool.submit(step)
            yield take()
