"""What one run folder has saved, as the server has it: the story's own eyes on checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from tests.simulation.job_life_files import SharedFiles


class Saved:
    """The checkpoints of a run folder.

    Args:
        files: the server.
        folder: the run folder.
        fail: told of a broken promise: its number, and how.

    Attributes:
        durable: step of the newest checkpoint that was ever whole.
        dirty: something was touched since the last look.
    """

    def __init__(self, files: SharedFiles, folder: str, fail: Callable[[int, str], None]) -> None:
        self.files, self.folder, self.fail = files, folder, fail
        self.durable, self.dirty = 0, False
        self._whole: dict[int, bool] = {}
        self._since: list[tuple[float, int]] = [(0.0, 0)]  # (since when, newest whole step)

    def newest(self) -> int:
        """The newest whole checkpoint."""
        return max(self.whole())

    def whole(self) -> list[int]:
        """Steps of the whole checkpoints; 0 is the fresh run."""
        files, folder = self.files, f"{self.folder}/checkpoints"
        steps = [0]
        for name in files.children.get(folder, ()):
            if not (name.startswith("step-") and name.endswith(".pt")):
                continue
            inode, sums = files.true(f"{folder}/{name}"), files.bytes_of(f"{folder}/{name}.sha256")
            if inode is None or not sums:
                continue
            if inode.number not in self._whole:
                self._whole[inode.number] = hashlib.sha256(bytes(inode.data)).hexdigest() == sums.decode().split()[0]
            if self._whole[inode.number]:
                steps.append(int(name.removeprefix("step-").removesuffix(".pt")))
        return steps

    def look(self) -> None:
        """After an event: the newest whole checkpoint never gets older."""
        if not self.dirty:
            return
        self.dirty = False
        now = self.newest()
        if now < self.durable:
            self.fail(2, f"{self.folder}: the newest whole checkpoint was step {self.durable}, now it is {now}")
        if now != self._since[-1][1]:
            self._since.append((self.files.kernel.now, now))
        self.durable = max(self.durable, now)

    def begins(self, who: str, step: int) -> None:
        """A training begins after a step."""
        files = self.files
        bound = max(files.kernel.now - files.bound - 1.0, 0.0)
        must = max(at for since, at in self._since if since <= bound)
        if step < must:
            self.fail(2, f"{who} begins after step {step}, step {must} was whole {files.bound:.0f} s ago")
        if step not in self.whole():
            self.fail(2, f"{who} begins after step {step}, whose checkpoint is not whole")
