"""A search on Ray Tune: Tune places trials, starts them, and ends them; ``state.py`` decides.

Tune asks our searcher for the next trial and our scheduler whether one goes on; both pass the question on. Restarts are
ours, too: a failed trial is an ended one to Tune, and comes again as a new one that goes on in the same run folder.
What Tune writes is thrown away; a search that was killed begins a new experiment that tries what is left.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from marc_dist.cluster.local import visible_gpus
from marc_dist.cluster.rank_process import num_cores
from marc_dist.cluster.ray import connected
from marc_dist.cluster.ray_ranks import one_line
from marc_dist.cluster.ray_supervisor import NAMESPACE
from marc_dist.config import LaunchError, MarcError
from marc_dist.run.rank_ends import clear_ends
from marc_dist.tuning.local_executor import Size, termination_as_interrupt
from marc_dist.tuning.ray_trial import quiet_environment, trial
from marc_dist.tuning.state import Search, Trial
from marc_dist.tuning.trial import prepare_trial, search_token, trial_attempt, trial_end

SETTLE_S = 2.0
"""A trial that was lost comes again so much later: its processes on a node that is gone need a moment to go, too."""
OBJECT_STORE = 80_000_000  # bytes; nothing of ours passes through it


@contextmanager
def ray_cluster(address: str | None, timeout_s: float) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster, or to one of this machine alone that ends with the block.

    Raises:
        LaunchError: the cluster is out of reach, or Ray does not start.
    """
    quiet_environment()
    if address is not None:
        with ExitStack() as stack:
            try:
                found = stack.enter_context(connected(address, timeout_s))
            except LaunchError as error:  # in the words of this command
                text = str(error).replace("cluster.address=", "--address ")
                raise LaunchError(text.replace("cluster.connect_timeout_s", "--connect-timeout")) from None
            yield found
        return
    with _own_ray() as found:
        yield found


@contextmanager
def _own_ray() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise LaunchError("Ray is not installed here: pip install 'ray[tune]', or use --executor local") from None
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=num_cores(),
            num_gpus=visible_gpus(os.environ),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=OBJECT_STORE,
        )
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise LaunchError(f"Ray does not start here ({one_line(error)}); use --executor local") from None
    try:
        yield ray
    finally:
        ray.shutdown()
        if main:  # Ray has put its own there
            signal.signal(signal.SIGTERM, before)


def ray_size(ray: Any, size: Size) -> int:
    """Trials that the nodes which are there can hold at a time.

    Raises:
        LaunchError: not even one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    per_rank = Size(1, size.cpus, size.gpus)
    fit = sum(per_rank.fitting(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes) // size.procs
    if fit < 1:
        there = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes[:16])
        raise LaunchError(
            f"a trial wants {size.procs} process(es) with {size.cpus} CPU and {size.gpus:g} GPU each, the Ray cluster "
            f"has {len(nodes)} node(s): {there}; ask for less, or add nodes"
        )
    return min(size.concurrent or fit, fit)


class _Bridge:
    """What searcher, scheduler and callback of Tune share."""

    def __init__(self, search: Search, folder: Path, size: Size, concurrent: int, show: Callable[[], None]) -> None:
        self.search, self.folder, self.size, self.concurrent, self.show = search, folder, size, concurrent, show
        self.token = search_token(os.environ)
        self.active: dict[str, Trial] = {}
        self.cooling: list[tuple[float, Trial]] = []
        self.error: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its hooks into a folder that nobody reads; nothing of ours goes there."""
        return type(None), ()

    def suggest(self, trial_id: str) -> dict[str, Any] | None | str:
        """The configuration of a new trial of Tune's, None for not now, "FINISHED"."""
        try:
            self._cool()
            if self.error is not None or self.search.over:
                return "FINISHED"
            if len(self.active) + len(self.cooling) >= self.concurrent:
                return None
            run = self.search.next()
            if run is None:
                return "FINISHED" if self.search.over else None
            run_dir = prepare_trial(self.search, run, self.folder)
            clear_ends(run_dir / "logs")
            self.search.began(run)
            self.active[trial_id] = run
            size = {"procs": self.size.procs, "cpus": self.size.cpus, "gpus": self.size.gpus}
            told = {
                "run_dir": str(run_dir),
                "attempt": trial_attempt(self.token, run).variables(),
                "cwd": str(Path.cwd()),
            }
            return told | size
        except MarcError as error:
            self.error = error
            return "FINISHED"

    def goes_on(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial of Tune's goes on after a result."""
        run = self.active.get(trial_id)
        if self.error is not None or run is None:
            return False
        try:
            return "row" not in result or self.search.report(run, json.loads(result["row"])) == "go"
        except MarcError as error:
            self.error = error
            return False

    def ended(self, trial_id: str, error: bool) -> None:
        """A trial of Tune's is over."""
        run = self.active.pop(trial_id, None)
        if run is None:
            return
        if not error:
            self.search.ended(run, 0)
        else:
            self.cooling.append((time.monotonic() + SETTLE_S, run))

    def _cool(self) -> None:
        for entry in [entry for entry in self.cooling if time.monotonic() > entry[0]]:
            self.cooling.remove(entry)
            run = entry[1]
            run_dir = self.folder / "trials" / run.name
            self.search.ended(run, *trial_end(run_dir, self.size.procs, 1, trial_attempt(self.token, run)))


def run_on_ray(search: Search, folder: Path, size: Size, concurrent: int, show: Callable[[], None]) -> None:
    """Run the trials of a search on the cluster that this process is connected to.

    Args:
        search: decides.
        folder: of the search, absolute, seen by every node.
        size: of a trial.
        concurrent: trials at a time.
        show: called now and then.

    Raises:
        LaunchError: an objective that the trainer does not report, a full disk, Ray's own trouble.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the search can go on later.
    """
    from ray import tune
    from ray.tune.error import TuneError

    bridge = _Bridge(search, folder, size, concurrent, show)
    searcher, scheduler, callback = _hooks(bridge)
    bundles = [{}, *([{"CPU": size.cpus, **({"GPU": size.gpus} if size.gpus else {})}] * size.procs)]
    storage = folder / ".ray"
    for name in ("ray", "ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory(bundles, strategy="PACK")),
        tune_config=tune.TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=-1),
        run_config=tune.RunConfig(name="now", storage_path=str(storage), verbose=0, callbacks=[callback]),
    )
    try:
        with termination_as_interrupt():
            tuner.fit()
    except TuneError as error:
        if bridge.error is None:
            raise LaunchError(f"Ray Tune: {one_line(error)}; start again with --resume") from None
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if bridge.error is not None:
        raise bridge.error
    if not search.over:
        raise LaunchError(f"{folder}: Ray Tune ended before the search did; start again with --resume")


def _hooks(bridge: _Bridge) -> tuple[Any, Any, Any]:
    """Tune's classes that pass every question on."""
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    class Suggests(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> Any:
            found = bridge.suggest(trial_id)
            return Searcher.FINISHED if found == "FINISHED" else found

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            bridge.ended(trial_id, error)

        def save(self, checkpoint_path: str) -> None:
            """Everything is in our own journal."""

        def restore(self, checkpoint_path: str) -> None:
            """See ``save``."""

    class Decides(FIFOScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            goes_on = bridge.goes_on(trial.trial_id, result)
            return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    class Shows(tune.Callback):  # type: ignore[misc]
        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            bridge.show()

    return Suggests(), Decides(), Shows()
