"""An index folder from outside: whether it is one, what made it, and which archive it is of. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from marc_dist.config import ConfigError, DataError

FORMAT = 1
OWN = re.compile(
    r"\.store\.json\.\d+\.tmp|\.?[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{8}\.npy(\..+\.tmp)?|\.nfs[0-9a-f]+|(\.begun)?\.lock"
)
"""Names that a crash leaves in a folder of ours before ``store.json`` is there."""


def check_index_dir(folder: Path) -> None:
    """Refuse a folder of somebody else's: an index folder is new, empty, or one of ours, begun ones included.

    Raises:
        ConfigError: says what lies there.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file, expected a folder; choose another --index-dir")
    held = sorted(path.name for path in folder.iterdir() if not OWN.fullmatch(path.name)) if folder.is_dir() else []
    if held and "store.json" not in held:
        raise ConfigError(
            f"{folder}: expected an index or nothing, got {', '.join(held[:3])}; choose another --index-dir"
        )


def read_store(folder: Path) -> dict[str, Any]:
    """``store.json``.

    Raises:
        DataError: none there, not readable, another format.
    """
    file = folder / "store.json"
    remedy = "not an index of this version; choose another folder"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no index (no store.json); make one with marc-search ENCODER --index-only") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {remedy}") from None
    wanted = {"parts": dict, "dim": int, "about": dict}
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        got = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise DataError(f"{file}: expected format {FORMAT}, got {got!r}; {remedy}")
    if not all(isinstance(meta.get(key), kind) for key, kind in wanted.items()):
        raise DataError(f"{file}: lacks {', '.join(wanted)}; {remedy}")
    for part in meta["parts"].values():
        kinds = {"made": dict, "file": str, "crc32": int}
        if not isinstance(part, dict) or not all(isinstance(part.get(key), kind) for key, kind in kinds.items()):
            raise DataError(f"{file}: does not say what made its parts; {remedy}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.npy", part["file"]):
            raise DataError(f"{file}: names a part {part['file']!r:.60}; {remedy}")
        if part.get("contents") not in (None, f"contents-of-{part['file']}"):
            raise DataError(f"{file}: names contents {part['contents']!r:.60}; {remedy}")
    return meta


def archive_of(index_dir: Path | None) -> str:
    """The shard folder that an index folder was made of.

    Raises:
        ConfigError: no index folder, or the archive is not where it was.
        DataError: see ``read_store``.
    """
    if index_dir is None or not (index_dir / "store.json").exists():
        raise ConfigError("--archive: expected the shard folder to search, got none; add --archive DIR")
    root = read_store(index_dir)["about"].get("archive_dir")
    if not isinstance(root, str) or not Path(root).is_dir():
        raise ConfigError(f"{index_dir}: its archive is not at {root}; say where it is with --archive DIR")
    return root
