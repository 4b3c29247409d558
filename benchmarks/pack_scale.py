"""Memory and cores of marc-shard on many small pictures: the command as typed, watched from outside.

    python benchmarks/pack_scale.py [--num 200000] [--workers 2] [--layouts table folders] [--quick]

Pictures are made up: 24 x 24 pixels, all different, in folders of 1000. Their labels stand in a table
`image,labels,split` (JPEG), or are the folders' names (PNG). What is watched, five times a second:

    memory     of the command and all of its helpers together: each page once (Pss), the highest of all looks
    parent     the highest resident memory of the command alone, with the pages of its libraries (VmHWM)
    cores      processor time of all of them / time by the clock, while shards are written, and from start to end

A second run with a hundredth of the pictures gives what a picture costs beyond what any packing costs. Where other
programs run, the cores that they had are taken off those that there are.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("buildings", "cars", "grass", "pavement", "sand", "trees", "water")
LOOK_S = 0.2
MEMORY_MB, CORES = 300, 0.9  # what is claimed: megabytes in all, share of two idle cores while shards are written
TICKS = os.sysconf("SC_CLK_TCK")


def make(folder: Path, num: int, layout: str) -> int:
    """Pictures and their labels; the bytes of all pictures."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    kind = "jpg" if layout == "table" else "png"
    total = 0
    lines = ["image,labels,split"]
    for number in range(num):
        buffer = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((24, 24))
        small.save(buffer, {"jpg": "JPEG", "png": "PNG"}[kind])
        data = buffer.getvalue()
        group = f"part-{number // 1000:03d}" if layout == "table" else CLASSES[number // 1000 % len(CLASSES)]
        place = folder / group / f"tile_{number:07d}.{kind}"
        if number % 1000 == 0:
            place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        total += len(data)
        labels = [CLASSES[number % 7], CLASSES[number // 7 % 7], CLASSES[number // 49 % 7]]
        lines.append(f"{place.name},{'|'.join(sorted(set(labels)))},{'test' if number % 5 == 0 else 'train'}")
    if layout == "table":
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return total


def family(root: int) -> list[int]:
    """A process and all that it has started."""
    found = [root]
    for at in found:
        try:
            for task in Path(f"/proc/{at}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def look(pids: list[int], spent: dict[int, float]) -> tuple[int, int]:
    """Bytes of all, the peak of the first one; ``spent`` gets the processor seconds of each, and keeps the ended."""
    total, peak = 0, 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            if pid == pids[0]:
                peak = sum(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
            spent[pid] = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / TICKS
        except (OSError, IndexError):
            continue
    return total, peak


def busy() -> float:
    """Processor seconds that the whole machine has spent."""
    cells = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]))
    return (sum(cells) - cells[3] - cells[4]) / TICKS


def watched(source: Path, out: Path, workers: int) -> dict[str, Any]:
    """One packing."""
    words = [sys.executable, "-m", "marc_dist.cli.shard", "--dataset", "folder", "--source", str(source)]
    words += ["--out", str(out), "--workers", str(workers)]
    before, machine, start = resource.getrusage(resource.RUSAGE_CHILDREN), busy(), time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(words, cwd=ROOT, stdout=told, stderr=told)
        memory = parent = 0
        first = last = (0.0, 0.0)  # seconds by the clock and of processors, when shards began and when last seen
        reading = 0
        each: dict[int, float] = {}
        while process.poll() is None:
            total, peak = look(family(process.pid), each)
            now = time.perf_counter() - start
            if total:
                memory, parent = max(memory, total), max(parent, peak)
            writing = any(out.parent.glob(f".{out.name}.partial/*.tar*"))
            if not writing and not first[0]:
                reading = memory
            if writing:
                last = now, sum(each.values())
                first = first if first[0] else last
            time.sleep(LOOK_S)
        if process.returncode:
            told.seek(0)
            raise SystemExit(told.read().decode())
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    others = max(0.0, busy() - machine - spent)
    writing_s = last[0] - first[0]
    return {
        "seconds": seconds,
        "memory": memory,
        "memory_reading": reading,
        "parent": parent,
        "cpu_s": spent,
        "writing_s": writing_s,
        "cores_writing": (last[1] - first[1]) / writing_s if writing_s > 0 else 0.0,
        "cores": spent / seconds,
        "others": others / seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200_000, help="pictures")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--layouts", nargs="+", default=["table", "folders"], choices=["table", "folders"])
    parser.add_argument("--quick", action="store_true", help="few pictures, to see that the script runs; no verdict")
    args = parser.parse_args()
    num = 2_000 if args.quick else args.num
    figures: dict[str, Any] = {}
    for layout in args.layouts:
        with tempfile.TemporaryDirectory(prefix="pack-scale-") as temporary:
            work = Path(temporary)
            few = max(200, num // 100)
            for name, count in (("few", few), ("all", num)):
                (work / name).mkdir()
                size = make(work / name, count, layout)
            base = watched(work / "few", work / "out-few", args.workers)
            one = watched(work / "all", work / "out-all", args.workers)
        each = (one["memory"] - base["memory"]) / (num - few)
        print(f"{layout}: {num} pictures, {size / 1e6:.1f} MB, {args.workers} processes")
        seconds, writing = one["seconds"], one["writing_s"]
        print(f"  {seconds:.1f} s, {num / seconds:,.0f} pictures/s, {size / seconds / 1e6:.2f} MB/s")
        print(f"  {num / writing:,.0f} pictures/s while shards are written ({writing:.1f} s)")
        print(
            f"  memory {one['memory'] / 1e6:.0f} MB in all ({one['memory_reading'] / 1e6:.0f} MB until shards are "
            f"written), {base['memory'] / 1e6:.0f} MB for {few}: {each:.0f} bytes a picture; parent "
            f"{one['parent'] / 1e6:.0f} MB"
        )
        print(
            f"  cores {one['cores_writing']:.2f} of {args.workers} while shards are written, {one['cores']:.2f} from "
            f"start to end; other programs had {one['others']:.2f}"
        )
        figures[layout] = {"pictures": num, "bytes": size, "few": base, "all": one, "bytes_each": each}
    return 0 if args.quick else judge(figures, args.workers)


def judge(figures: dict[str, Any], workers: int) -> int:
    from common import verdict, write  # it imports torch, and takes more memory than what is measured

    write("pack_scale", {"workers": workers, "layouts": figures})
    held = []
    for layout, figure in figures.items():
        one = figure["all"]
        held.append(verdict(f"{layout}: memory of all processes", one["memory"] / 1e6, MEMORY_MB, " MB"))
        room = min(float(workers), (os.cpu_count() or 1) - one["others"])  # what other programs left
        share = one["cores_writing"] / room
        held.append(verdict(f"{layout}: share of the cores left", share, CORES, "", at_least=True))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
