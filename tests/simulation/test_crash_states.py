"""Every folder that a crash may leave shows the old state or the new one, and the next run goes on from it.

Here a sample of the states of each protocol, the same each time; all of them in ``make campaign``.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import marc_dist.files
from marc_dist.data import cache
from marc_dist.packing import publish
from marc_dist.run import attempts
from marc_dist.training import checkpoint
from marc_dist.training.log import RunLog
from marc_dist.tuning import journal
from tests.simulation import crash_protocols as protocols
from tests.simulation.crash_check import Checked, check
from tests.simulation.crash_recorder import Close, Entry, Sync, Truncate, Write, recording
from tests.simulation.crash_states import Rules, crash_states

EVERY = {
    "shards": 41,
    "shards, resumed": 53,
    "shards, added": 23,
    "training": 41,
    "export": 5,
    "search folder": 5,
    "kept features": 5,
}
"""Of so many states one is opened; of the others every one."""
MAKE: dict[str, Callable[[Path], protocols.Protocol]] = {
    "checkpoint": lambda lab: protocols.checkpoints(),
    "export": lambda lab: protocols.export(),
    "shards": protocols.shards,
    "shards, resumed": lambda lab: protocols.shards(lab, resume=True),
    "training": protocols.training,
    "search journal": lambda lab: protocols.journal(),
    "search folder": lambda lab: protocols.search_folder(),
    "kept vectors": protocols.vectors,
    "kept index": protocols.index,
    "evaluation": protocols.evaluation,
    "job record": lambda lab: protocols.job(),
    "decoded pictures": protocols.decoded,
    "kept features": protocols.features,
    "shards, added": protocols.added,
}


def test_all_protocols_are_here(lab: Path) -> None:
    assert [one.name for one in protocols.all_protocols(lab)] == list(MAKE)


@pytest.mark.parametrize("rules", ["local", "nfs"])
@pytest.mark.parametrize("name", MAKE)
def test_old_or_new_never_a_third(name: str, rules: Rules, lab: Path, tmp_path: Path) -> None:
    place = lab / f"{name}-{rules}".replace(" ", "-")
    place.mkdir()
    found = check(MAKE[name](lab), rules, place, every=EVERY.get(name, 1), again=15)
    print(found.line)
    assert not found.faults, found.faults[0]
    assert found.states >= 5


def planted(plant: Callable[[pytest.MonkeyPatch], None], name: str, rules: Rules, lab: Path, place: Path) -> Checked:
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        slow = name in ("shards", "training")  # these two show in what is read
        every = 31 if name == "shards" else 1
        return check(MAKE[name](lab), rules, place, every=every, again=10_000 if slow else 3, faults=1)


def no_fsync_of_files(patch: pytest.MonkeyPatch) -> None:
    """Renamed before its bytes are on the disk."""
    patch.setattr(marc_dist.files, "os", _WithoutSync())


def no_fsync_of_folders(patch: pytest.MonkeyPatch) -> None:
    """The new name may be gone after a power cut."""
    for module in (marc_dist.files, publish, journal):
        patch.setattr(module, "sync_folder", lambda folder: None)


def checksum_after_data(patch: pytest.MonkeyPatch) -> None:
    """The older checkpoint goes, and the new one's checksum is not there yet."""
    real, late = checkpoint.write_atomic, []

    def write(path: Path, data: bytes) -> None:
        if path.suffix == ".sha256":
            late.append((path, data))
        else:
            real(path, data)
            for old in path.parent.glob("step-*.pt"):
                if old != path:
                    old.unlink()
            real(*late.pop())

    patch.setattr(checkpoint, "write_atomic", write)


def old_checkpoint_first(patch: pytest.MonkeyPatch) -> None:
    """The older checkpoint goes before the new one is durable."""
    real = checkpoint.write_atomic

    def write(path: Path, data: bytes) -> None:
        if path.suffix == ".sha256":
            for old in path.parent.glob("step-*.pt"):
                old.unlink()
        real(path, data)

    patch.setattr(checkpoint, "write_atomic", write)


def line_without_end(patch: pytest.MonkeyPatch) -> None:
    """The next line grows out of a torn one."""

    def append(path: Path, line: bytes) -> None:
        with path.open("ab") as file:
            file.write(line + b"\n")
            os.fsync(file.fileno())

    patch.setattr(attempts, "append_line", append)


def torn_line_taken(patch: pytest.MonkeyPatch) -> None:
    """A journal that believes whatever ends in a newline."""
    patch.setattr(journal, "_whole", lambda data: data[: data.rfind(b"\n") + 1])


def journal_not_synced(patch: pytest.MonkeyPatch) -> None:
    """Lines of the log that a checkpoint outlives."""
    patch.setattr(RunLog, "sync", lambda log: None)


def written_in_place(patch: pytest.MonkeyPatch) -> None:
    """No temporary file."""

    def write(path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True, parents=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        marc_dist.files.sync_folder(path.parent)

    patch.setattr(marc_dist.files, "write_atomic", write)
    patch.setattr("marc_dist.run.job.write_atomic", write)


def mixed_set(patch: pytest.MonkeyPatch) -> None:
    """Files of one encoder take their places one by one, the description last."""

    def write(folder: Path, files: dict[str, bytes], index: str, data: bytes) -> None:
        for name, content in {**files, index: data}.items():
            marc_dist.files.write_atomic(folder / name, content)

    patch.setattr("marc_dist.encoder.export.write_set", write)


def exchange_undone(patch: pytest.MonkeyPatch) -> None:
    """The older shards are removed before the exchange is durable."""
    real = publish._exchange

    def exchange(one: Path, two: Path) -> bool:
        done = real(one, two)
        if done:
            import shutil

            shutil.rmtree(one)
        return done

    patch.setattr(publish, "_exchange", exchange)


def sizes_not_synced(patch: pytest.MonkeyPatch) -> None:
    """The cache gets its name before all of it is on the disk."""
    patch.setattr(cache, "os", _WithoutSync())


class _WithoutSync:
    """``os``, but files are not synced; folders are."""

    def __getattr__(self, name: str) -> object:
        return self._folders_only if name == "fsync" else getattr(os, name)

    def _folders_only(self, fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").is_dir():
            os.fsync(fd)


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], None], str, Rules]] = [
    (no_fsync_of_files, "checkpoint", "local"),
    (no_fsync_of_folders, "checkpoint", "local"),
    (no_fsync_of_folders, "search journal", "local"),
    (checksum_after_data, "checkpoint", "nfs"),
    (old_checkpoint_first, "checkpoint", "local"),
    (line_without_end, "job record", "nfs"),
    (torn_line_taken, "search journal", "nfs"),
    (journal_not_synced, "training", "local"),
    (written_in_place, "job record", "local"),
    (mixed_set, "export", "nfs"),
    (exchange_undone, "shards", "local"),
    (sizes_not_synced, "decoded pictures", "local"),
]


@pytest.mark.parametrize(("plant", "name", "rules"), PLANTED, ids=lambda one: getattr(one, "__name__", one))
def test_a_planted_bug_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, rules: Rules, lab: Path
) -> None:
    found = planted(plant, name, rules, lab, lab / f"planted-{plant.__name__}-{name}".replace(" ", "-"))
    print(found.faults)
    assert found.faults


def test_the_recorder_sees_every_kind_of_writer(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "old").write_bytes(b"before")
    with recording(tmp_path) as recorder:
        with (tmp_path / "a").open("w") as text:
            text.write("one")
            text.flush()
            os.fsync(text.fileno())
        (tmp_path / "a").replace(tmp_path / "old")
        np.save(tmp_path / "array.npy", np.arange(5000))  # C's fwrite
        pages = np.lib.format.open_memmap(tmp_path / "map.npy", mode="w+", dtype=np.uint8, shape=(9000,))
        pages[5000] = 7
        pages.flush()
        pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "t.parquet")  # C++
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            tar.add(tmp_path / "old", "x")
        marc_dist.files.sync_folder(tmp_path)
        os.truncate(tmp_path / "t.tar", 3)
        (tmp_path / "t.tar").unlink()
    kinds = [type(op) for op in recorder.ops]
    assert {Entry, Write, Sync, Close, Truncate} <= set(kinds)
    names = [
        [(name, after is None) for _, name, after, _ in op.changes] for op in recorder.ops if isinstance(op, Entry)
    ]
    made = [[(name, False)] for name in ("array.npy", "map.npy", "t.parquet", "t.tar")]
    assert names == [[("a", False)], [("a", True), ("old", False)], *made, [("t.tar", True)]]
    shown = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    from tests.simulation.crash_states import undisturbed

    assert undisturbed(recorder.trace, len(recorder.ops)) == shown


def test_states_of_one_rename_by_hand(tmp_path: Path) -> None:
    """Written, not synced, renamed over an older file: what each set of rules allows at the end."""
    (tmp_path / "f").write_bytes(b"old")
    with recording(tmp_path) as recorder:
        with (tmp_path / "t").open("wb", buffering=0) as file:
            file.write(b"new!")
        (tmp_path / "t").replace(tmp_path / "f")
    last = len(recorder.ops)
    at_end = {
        rules: {tuple(sorted(state.paths.items())) for state in crash_states(recorder.trace, rules) if state.at <= last}
        for rules in ("local", "nfs")
    }
    torn = [b"new!", b"", b"n", b"ne", b"new", b"\0\0\0\0", b"ne\0\0", b"\0\0w!"]
    before = {(("f", b"old"),)}
    assert at_end["local"] == before | {(("f", b"old"), ("t", data)) for data in torn} | {
        (("f", data),) for data in torn
    }
    assert at_end["nfs"] == before | {(("f", b"old"), ("t", data)) for data in torn} | {(("f", b"new!"),)}
