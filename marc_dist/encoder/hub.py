"""Files of the Hugging Face Hub: from the local cache, else fetched; a hub that cannot be reached is found out quickly.

``huggingface_hub`` itself tries a hub that is away six times for each file: 47 s before timm gives up on one backbone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from marc_dist.config import first_line

PROBE_S = 5.0
"""Longest wait for the first answer of a server."""
LOOK_S = 0.5
CHUNK = 1 << 17
"""Bytes that are written at a time; with the library's own 10 MB a slow file would seem to stand still."""


class NotAtHand(Exception):
    """A published file that can be had neither from the cache nor from the network; says why."""


def split_repo(name: str) -> tuple[str, str | None]:
    """``org/name@revision`` -> repository and revision, None = the newest."""
    repo, _, revision = name.partition("@")
    return repo, revision or None


def refuse_unreachable(url: str) -> None:
    """One request that does not repeat itself; any answer will do.

    Raises:
        NotAtHand: none came, or Hugging Face's offline mode is on.
    """
    import huggingface_hub as hub

    if hub.constants.HF_HUB_OFFLINE:
        raise NotAtHand("HF_HUB_OFFLINE is set, and the local cache has no such file")
    found: list[str] = [f"{url} did not answer in {2 * PROBE_S:.0f} s"]

    def ask() -> None:
        try:
            hub.get_session().head(url, timeout=PROBE_S)
            found.clear()
        except Exception as error:  # requests' or httpx's, by the hub's version
            found[:] = [f"{url} cannot be reached: {first_line(error)}"]

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name cannot be given a limit
    asking.start()
    asking.join(2 * PROBE_S)
    if found:
        raise NotAtHand(found[0])


@contextmanager
def watched(folder: Path, moved: Callable[[], None]) -> Iterator[None]:
    """Tell, inside the block, of every half second in which files below a folder grew: what is fetched arrives.

    Args:
        folder: where it is written; need not be there yet.
        moved: called in another thread.
    """
    stop = threading.Event()

    def look() -> None:
        before = _bytes_below(folder)
        while not stop.wait(LOOK_S):
            now = _bytes_below(folder)
            if now > before:
                moved()
            before = now

    looking = threading.Thread(target=look, name="download", daemon=True)
    looking.start()
    try:
        yield
    finally:
        stop.set()
        looking.join()


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # renamed meanwhile
            total += path.lstat().st_size
    return total


def hub_file(name: str, files: Sequence[str], moved: Callable[[], None] = lambda: None) -> tuple[Path, str]:
    """The first of some files that a repository has.

    Args:
        name: ``org/name`` or ``org/name@revision``.
        files: names, the best first.
        moved: called, in another thread, while a file arrives.

    Returns:
        Where it lies in the local cache, and its revision.

    Raises:
        NotAtHand: not in the cache, and not to be had.
    """
    import huggingface_hub as hub

    repo, revision = split_repo(name)
    path: object = None
    try:
        for file in files:
            path = hub.try_to_load_from_cache(repo, file, revision=revision)
            if isinstance(path, str):
                return Path(path), Path(path).parent.name
        refuse_unreachable(hub.constants.ENDPOINT)
        hub.constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        with watched(Path(hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs", moved):
            for file in files:
                try:
                    path = hub.hf_hub_download(repo, file, revision=revision, etag_timeout=PROBE_S)
                    return Path(path), Path(path).parent.name
                except hub.errors.LocalEntryNotFoundError:
                    raise
                except hub.errors.EntryNotFoundError:
                    continue
    except NotAtHand:
        raise
    except Exception as error:  # no such repository, a gated one, a network that went away
        raise NotAtHand(f"{repo}: {first_line(error)}") from None
    raise NotAtHand(f"{repo} has no {' or '.join(files)}")
