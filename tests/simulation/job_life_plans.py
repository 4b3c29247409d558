"""What happens in a story: which faults strike when, and what users type, after a theme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tests.simulation.job_life_checks import RAY_WAY_BACK, WAY_BACK

if TYPE_CHECKING:
    from tests.simulation.job_life_story import Story

COMMANDS_END_S = 300.0
FAULTS = (
    "kill rank", "exit 1", "exit 2", "ask rank", "stuck rank", "freeze rank", "pause rank", "lose node", "kill batch",
    "requeue", "preempt", "time limit", "full disk", "crash begin", "crash end", "crash rank", "crash submit",
    "crash cancel", "deaf slurm", "kill task",
)  # fmt: skip
RAY_FAULTS = (
    "kill rank", "exit 1", "exit 2", "ask rank", "stuck rank", "freeze rank", "pause rank", "lose node", "full disk",
    "crash rank", "crash submit", "crash cancel", "kill task", "kill supervisor",
)  # fmt: skip
CRASHES = [what for what in FAULTS if what.startswith("crash")]
DRAWN = ("calm", "stops", "holds", "kills", "cancels", "silence", "crashes", "launches", "arrays", "ends")
THEMES = (*DRAWN, "ray")
"""What stories may be about, beside ``any``."""
COMMANDS = ("cancel", "cancel", "resume", "status", "launch", "launch local", "train")


def plan(story: Story) -> None:
    """What comes, after a theme of ``DRAWN``; two of five stories are of the theme ``any``. Ray is asked for."""
    rng = story.rng
    drawn = story.theme or rng.choice(("any", "any", "calm", "any", *DRAWN))
    if drawn == "arrays":
        story.make_array(rng.choice((2, 3)), rng.choice((1, 2, 3)))
    story.user("login1", "launch", 0.0)
    plans: dict[str, Callable[[], None]] = {
        "calm": lambda: _one_fault(story, sorted(WAY_BACK - {"deaf"})),
        "stops": lambda: _one_fault(story, ["ask rank", "preempt"]),
        "holds": lambda: _one_fault(story, ["stuck rank", "freeze rank", "lose node"]),
        "kills": lambda: _kills(story),
        "cancels": lambda: _cancels(story),
        "silence": lambda: _silence(story),
        "crashes": lambda: _crashes(story),
        "launches": lambda: _launches(story),
        "arrays": lambda: _arrays(story),
        "ends": lambda: _ends(story),
        "ray": lambda: _ray(story),
        "any": lambda: _anything(story),
    }
    plans[drawn]()


def _one_fault(story: Story, faults: Sequence[str]) -> None:
    """One fault that there is a way back from, and nobody who meddles."""
    limits = {"max_restarts": story.rng.choice((1, 5)), "max_stalls": story.rng.choice((1, 2))}
    story.preset = story.preset.model_copy(update=limits)
    story.waiting.append((story.rng.choice((1, 1, 2)), story.rng.uniform(0.0, 30.0), story.rng.choice(faults)))


def _kills(story: Story) -> None:
    """Every start loses a rank."""
    story.preset = story.preset.model_copy(update={"max_restarts": 5, "max_stalls": 2})
    for number in (1, 2, 3, 4):
        story.waiting.append((number, story.rng.uniform(0.0, 25.0), "kill rank"))


def _cancels(story: Story) -> None:
    """Users cancel, early or late, and ask again when Slurm has forgotten."""
    story.slurm.accounting, story.slurm.forget_s = False, story.rng.choice((5.0, 300.0))
    for _ in range(story.rng.choice((1, 2))):
        story.user(story.rng.choice(("login1", "login2")), "cancel", story.rng.uniform(3.0, 70.0))
    story.user("login1", story.rng.choice(("status", "resume")), story.rng.uniform(80.0, COMMANDS_END_S))


def _crashes(story: Story) -> None:
    """Processes are killed between two of their writes, on a disk that may be full."""
    for _ in range(3):
        story.fault(story.rng.choice(CRASHES), story.rng.choice((0.0, story.rng.uniform(0.0, 60.0))))
    story.fault("full disk", story.rng.uniform(0.0, 60.0))
    for what in ("cancel", "resume"):
        story.user("login1", what, story.rng.uniform(20.0, 120.0))


def _launches(story: Story) -> None:
    """Several people start a run in the same folder, in the same seconds."""
    for node in ("login1", "login2", "login2"):
        story.user(node, story.rng.choice(("launch", "launch local", "train")), story.rng.uniform(0.0, 4.0))


def _silence(story: Story) -> None:
    """Slurm has too much to do while users launch again and again."""
    story.slurm.queue_s = 90.0
    story.fault("deaf slurm", 2.0)
    for _ in range(6):
        story.user("login2", "launch", story.rng.uniform(4.0, 25.0))


def _anything(story: Story) -> None:
    rng = story.rng
    if rng.random() < 0.25:
        story.user("login2", rng.choice(("launch", "launch local", "train")), rng.uniform(0.0, 4.0))
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
        what = rng.choice(FAULTS if story.ray is None else RAY_FAULTS)
        if what.startswith("crash") or rng.random() < 0.3:
            story.fault(what, rng.uniform(0.0, rng.choice((5.0, 40.0, 100.0))))
        else:
            story.waiting.append((rng.choice((1, 1, 2, 3)), rng.uniform(0.0, 50.0), what))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        node = rng.choice(("login1", "login2"))
        story.user(node, rng.choice(COMMANDS), rng.uniform(0.0, rng.choice((80.0, COMMANDS_END_S))))


def _arrays(story: Story) -> None:
    """One element a task: of the array or of some elements, anything that happens to a job."""
    size = story.rng.choice(((1, 1), (1, 2), (2, 1)))
    story.preset = story.preset.model_copy(
        update={
            "nodes": size[0],
            "procs_per_node": size[1],
            "array": story.preset.array.model_copy(update={"parallel": story.parallel}),
        }
    )
    themes: tuple[Callable[[], None], ...] = (
        lambda: _one_fault(story, sorted(WAY_BACK - {"deaf"})),
        lambda: _kills(story),
        lambda: _cancels(story),
        lambda: _crashes(story),
        lambda: _anything(story),
        lambda: _anything(story),
    )
    story.rng.choice(themes)()


def _ends(story: Story) -> None:
    """A rank hangs once all have met for the last time: its peers have done their work and leave."""
    story.preset = story.preset.model_copy(update={"max_restarts": 1, "max_stalls": 1})
    story.hangs_at_end = True


def _lost_and_killed(story: Story) -> None:
    """A node is lost, and before anybody can know, another rank is killed."""
    when = story.rng.uniform(0.0, 20.0)
    story.waiting.append((1, when, "lose node"))
    story.waiting.append((1, when + story.rng.uniform(0.5, 9.0), "kill rank"))


def _ray(story: Story) -> None:
    """A job of Ray's: anything that happens to a job of Slurm's, and its supervisor is lost."""
    story.use_ray()
    way_back = ["kill rank", "ask rank", "stuck rank", "freeze rank", "pause rank", "lose node", "kill task"]
    themes: tuple[Callable[[], None], ...] = (
        lambda: _one_fault(story, [*way_back, *RAY_WAY_BACK, *RAY_WAY_BACK]),
        lambda: _one_fault(story, ["lose node", *RAY_WAY_BACK]),
        lambda: _lost_and_killed(story),
        lambda: _kills(story),
        lambda: _cancels(story),
        lambda: _launches(story),
        lambda: _anything(story),
        lambda: _anything(story),
    )
    story.rng.choice(themes)()
