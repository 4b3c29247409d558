"""What a training step takes when its cores are shared: threads of torch that wait asleep, or spinning.

    python benchmarks/busy_cores.py [--busy 2] [--steps 4] [--quick]

ResNet-18, 64 images of 32 px, forward and backward on two threads, in a process of its own for each way to wait
(``OMP_WAIT_POLICY``; our commands set PASSIVE unless you have set it), alone and beside ``--busy`` processes that
compute without end, as loader processes, other ranks or other people's programs do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from common import verdict, write

STEP = """
import sys, time, timm, torch
torch.set_num_threads(2)
model, x = timm.create_model("resnet18", num_classes=16), torch.randn(64, 3, 32, 32)
model(x).sum().backward()
start = time.perf_counter()
for _ in range(int(sys.argv[1])):
    model(x).sum().backward()
print((time.perf_counter() - start) / int(sys.argv[1]))
"""


def seconds(policy: str | None, steps: int) -> float:
    """Of one step."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    command = [sys.executable, "-c", STEP, str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="processes beside it")
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    parser.add_argument("--quick", action="store_true", help="one step, to see that the script runs; no verdict")
    args = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for state, num in (("alone", 0), ("shared", args.busy)):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
        try:
            figures[state] = {
                policy or "library's default": seconds(policy, 1 if args.quick else args.steps)
                for policy in ("PASSIVE", None, "ACTIVE")
            }
        finally:
            for process in busy:
                process.kill()
                process.wait()
        for policy, value in figures[state].items():
            print(f"{state:7s} {policy:18s} {value:7.3f} s a step")
    write("busy_cores" + "-quick" * args.quick, {"busy": args.busy, "seconds": figures})
    if args.quick:
        return 0
    shared, alone = figures["shared"], figures["alone"]
    gain, cost = (state["library's default"] / state["PASSIVE"] for state in (shared, alone))
    held = [
        verdict("shared cores: library's default / PASSIVE", gain, 1.5, "x", at_least=True),
        verdict("idle cores: PASSIVE / library's default", 1 / cost, 1.2, "x"),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
