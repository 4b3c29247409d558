"""A real Slurm cluster of several virtual nodes on this machine, without systemd and without privileges.

    with SlurmCluster(nodes=4) as cluster:
        job = cluster.sh("sbatch", "--parsable", "--nodes=4", "--wrap=srun hostname").strip()
        cluster.wait_for(job, "COMPLETED")

One munged, one slurmctld, one slurmd for each node; Debian's build allows several slurmd on one host. Nodes are *named*
127.0.1.1, 127.0.1.2 ..., so that a job's MASTER_ADDR resolves with no hosts file. Accounting is off: sacct only fails.

The processes of the cluster are found by what they inherit in their environment, so no process of anybody else is ever
ended. Daemons are sessions of their own and do not hear Ctrl-C; a guard ends them when the test process was killed.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType

FINAL = frozenset(
    {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
)
"""States that a job does not leave by itself. PREEMPTED is not one: the job passes through it to PENDING."""

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
REMEDY = "apt-get install munge slurmctld slurmd slurm-client"
SETTINGS_OF_CLIENTS = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SCONTROL_", "SINFO_", "SACCT_")
NODE_OF_DAEMON = "MARC_TEST_NODE"  # slurmstepd inherits it from slurmd
NODE_OF_JOB = "SLURMD_NODENAME"  # slurmstepd sets it for the job's processes
CONTROLLER = "controller"
MAX_FOLDER = 60
"""Unix sockets lie in the folder, and their path is limited to 107 bytes."""
POLL_S = 0.1
SETTLE_S = 3.0

SLURM_CONF = """\
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# cred_expire: how long a requeued job waits; less than 5 is silently 120
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
# no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# more CPUs than the machine has
SlurmdParameters=config_overrides
ReturnToService=2
# random: the jobs of two test runs never share a name
FirstJobId={first_job}
SlurmctldTimeout=10
SlurmdTimeout=10
# also how long the controller tries to reach a dead node, several times over
MessageTimeout=5
KillWait=3
BatchStartTimeout=20
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=127.0.1.[1-{nodes}] NodeAddr=127.0.1.[1-{nodes}] Port=[{first_port}-{last_port}] \
CPUs={cpus} RealMemory=64000 {gres}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime=10 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
"""


class ClusterError(RuntimeError):
    """The cluster does not do what a test needs of it."""


def find_program(name: str) -> str | None:
    """Its path; Debian keeps daemons in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def missing_programs() -> list[str]:
    """What a cluster needs and this machine lacks."""
    return [name for name in (*DAEMONS, *CLIENTS) if find_program(name) is None]


class SlurmCluster:
    """A cluster, up between ``up()`` and ``down()``, or inside ``with``.

    Partitions: ``main`` (default; preempted with 10 s of grace, and told with the job's ``--signal``), ``high``.

    Args:
        folder: where everything lies, at most 60 characters; it stays after ``down()``. None: a temporary folder.
        nodes: number of nodes, 1..250.
        cpus: of each node; as many as you say, whatever the machine has.
        gpus: of each node, 0 or more; they are links to /dev/null.
    """

    def __init__(self, folder: str | Path | None = None, nodes: int = 4, cpus: int = 16, gpus: int = 2) -> None:
        self.nodes = [f"127.0.1.{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus
        self.gpus = gpus
        self._given = None if folder is None else Path(folder).absolute()
        self._folder: Path | None = None
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    # The cluster

    @property
    def folder(self) -> Path:
        """Where it lies: slurm.conf, bin, log, run, spool, state."""
        if self._folder is None:
            raise ClusterError("the cluster is not up")
        return self._folder

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a user of this cluster: that of now, less what would change Slurm's programs."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS_OF_CLIENTS)}
        path = f"{self.folder / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        return kept | {"SLURM_CONF": str(self.conf), "PATH": path}

    def up(self) -> SlurmCluster:
        """Start everything and wait until all nodes are idle; 1 to 2 s.

        Raises:
            ClusterError: a program is missing, SLURM_CONF is set, the folder is in use or its name too long, or a
                daemon ended; nothing is left behind.
        """
        if missing := missing_programs():
            raise ClusterError(f"{', '.join(missing)}: not on this machine ({REMEDY})")
        if "SLURM_CONF" in os.environ:
            raise ClusterError("SLURM_CONF is set: another cluster is in use here; unset it")
        if self._folder is not None:
            raise ClusterError("the cluster is up already")
        self._folder = self._make_folder()
        try:
            self._write_files()
            self._start_guard()
            self._start_daemons()
            self._until(self._all_idle, 30, "all nodes are idle")
        except BaseException as error:
            logs = self._tails()
            self.down()
            if isinstance(error, ClusterError):
                raise ClusterError(f"{error}\n{logs}") from error
            raise
        return self

    def down(self) -> None:
        """End every process of the cluster and of its jobs; the temporary folder goes, a given one stays."""
        if self._folder is None:
            return
        _end(self.conf, None)
        for daemon in self._daemons.values():
            daemon.wait()
        if self._guard is not None:  # last, so that it goes on if this is interrupted
            self._guard.kill()
            self._guard.wait()
        if self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self._guard, self._daemons = None, None, {}

    def __enter__(self) -> SlurmCluster:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def sh(self, *command: str | Path | int, limit_s: float = 60) -> str:
        """Run a command as a user of this cluster; its stdout.

        Raises:
            ClusterError: it failed; with what it wrote to stderr.
            subprocess.TimeoutExpired: it took longer than ``limit_s``, and was killed.
        """
        words = [str(word) for word in command]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=limit_s)
        if done.returncode:
            raise ClusterError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    # Jobs; a member of an array is "ID_INDEX"

    def state(self, job_id: str | int) -> str:
        """Slurm's word (``PENDING``, ``RUNNING`` ...); empty when the controller knows no such job."""
        try:
            listed = self.sh("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%T").split()
        except ClusterError as error:
            if "Invalid job id" in str(error):
                return ""
            raise
        return listed[0] if listed else ""

    def restarts(self, job_id: str | int) -> int:
        """How often it was requeued."""
        found = re.search(r"\bRestarts=(\d+)", self.sh("scontrol", "show", "job", job_id))
        if found is None:
            raise ClusterError(f"job {job_id}: scontrol tells no Restarts")
        return int(found[1])

    def wait_for(self, job_id: str | int, states: str | Collection[str] = FINAL, limit_s: float = 60) -> str:
        """Wait until the job is in one of these states; that state.

        Passing states (COMPLETING, SIGNALING, REQUEUED, PREEMPTED, none at all) may come and go unseen: wait for one
        that lasts, PENDING, RUNNING or a final one.

        Raises:
            ClusterError: ``limit_s`` passed, or the job stays in another final state; with all states that were seen.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        seen: list[tuple[float, str]] = []
        start = time.monotonic()
        while True:
            state, now_s = self.state(job_id), time.monotonic() - start
            if not seen or seen[-1][1] != state:
                seen.append((now_s, state))
            if state in wanted:
                return state
            over = state in FINAL and now_s - seen[-1][0] > SETTLE_S
            if over or now_s > limit_s:
                history = ", ".join(f"{name or 'unknown'} at {when:.1f} s" for when, name in seen)
                reason = "ended otherwise" if over else f"not within {limit_s:g} s"
                raise ClusterError(f"job {job_id} should be {' or '.join(sorted(wanted))}, {reason}; seen: {history}")
            time.sleep(POLL_S)

    def end_in(self, job_id: str | int, seconds: int) -> None:
        """Let the time limit of a running job pass soon.

        Limits are looked at every 30 s, and the job's ``--signal=USR2@T`` comes at the first look at which less than
        ``T + 30`` s are left; ``seconds`` is best a little more than T + 30. It changes the limit of the job itself:
        ``restore_limit`` once it was requeued, or it will end there again.
        """
        self.sh("scontrol", "update", f"JobId={job_id}", f"EndTime=now+{seconds}")

    def restore_limit(self, job_id: str | int, minutes: int) -> None:
        """Undo ``end_in``."""
        self.sh("scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}")

    # Nodes

    def kill_node(self, name: str) -> None:
        """SIGKILL to its slurmd and everything of its jobs, as if it lost power; the controller finds out by itself.

        That takes about 15 s, then the job is PENDING (when it may be requeued). ``set_down`` tells it at once.
        ``start_node`` before it has noticed hides the death: the job goes on RUNNING without the node's processes.
        """
        self._must_know(name)
        _end(self.conf, name)
        self._daemons[f"slurmd-{name}"].wait()

    def start_node(self, name: str) -> None:
        """Start the slurmd of a killed node; returns before it has registered."""
        self._must_know(name)
        before = self._daemons.get(f"slurmd-{name}")
        if before is not None and before.poll() is None:
            raise ClusterError(f"the slurmd of {name} is running")
        self._start(name, f"slurmd-{name}", "slurmd", "-D", "-N", name, "-f", self.conf)

    def set_down(self, name: str, reason: str = "test") -> None:
        """As an administrator, or a health check: its jobs are requeued or fail at once, with TERM and KILL."""
        self._must_know(name)
        self.sh("scontrol", "update", f"NodeName={name}", "State=DOWN", f"Reason={reason}")

    def resume_node(self, name: str) -> None:
        """Undo ``set_down``."""
        self._must_know(name)
        self.sh("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def node_states(self) -> dict[str, str]:
        """``idle``, ``mixed``, ``allocated``, ``completing``, ``down`` ... by node; ``*``: does not answer."""
        lines = self.sh("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return {node: state for node, state in (line.split() for line in lines)}

    def reset(self, limit_s: float = 60) -> None:
        """Make it as new: cancel all jobs, start dead slurmds, resume partition and nodes, wait until all are idle."""
        self._cancel_all()
        self.sh("scontrol", "update", "PartitionName=main", "State=UP")
        for name in self.nodes:
            if self._daemons[f"slurmd-{name}"].poll() is not None:
                self.start_node(name)
        self._until(self._made_idle, limit_s, "all nodes are idle")

    # Processes

    def processes(self, node: str | None = None) -> list[int]:
        """Pids of daemons, slurmstepds and jobs' processes, of one node or of all (then with the controller's)."""
        return [pid for pid, _ in _members(self.conf, node)]

    def job_processes(self, node: str | None = None) -> list[int]:
        """Pids of jobs' processes only: batch scripts, their srun, ranks, and whatever those started."""
        return [pid for pid, is_daemon in _members(self.conf, node) if not is_daemon]

    def _must_know(self, name: str) -> None:
        if name not in self.nodes:
            raise ClusterError(f"{name!r}: no such node, there are {', '.join(self.nodes)}")

    def _make_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="/tmp/mslurm.")) if self._given is None else self._given
        if len(str(folder)) > MAX_FOLDER:
            raise ClusterError(f"{folder}: longer than {MAX_FOLDER} characters, too long for unix sockets")
        if (folder / "slurm.conf").exists():
            raise ClusterError(f"{folder}: the folder of another cluster; take an empty one")
        return folder

    def _write_files(self) -> None:
        for part in ("bin", "log", "run", "state", "spool"):
            (self.folder / part).mkdir(parents=True)
        for name in CLIENTS:
            (self.folder / "bin" / name).symlink_to(find_program(name) or "")
        for number in range(self.gpus):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")  # must be a device; a link will do
        if self.gpus:
            (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{self.gpus - 1}]\n")
        key = self.folder / "run/munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        port = _free_ports(1 + len(self.nodes))
        text = SLURM_CONF.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            port=port,
            first_port=port + 1,
            last_port=port + len(self.nodes),
            first_job=random.SystemRandom().randrange(1000, 60000),
            nodes=len(self.nodes),
            cpus=self.cpus,
            gres=f"Gres=gpu:{self.gpus}" if self.gpus else "",
        )
        self.conf.write_text(text)

    def _start_guard(self) -> None:
        words = [sys.executable, "-ES", __file__, str(os.getpid()), str(self.conf)]
        words += [str(self.folder)] if self._given is None else []
        null = subprocess.DEVNULL
        self._guard = subprocess.Popen(words, env={}, stdin=null, stdout=null, stderr=null, start_new_session=True)

    def _start_daemons(self) -> None:
        run = self.folder / "run"
        self._start(
            *(CONTROLLER, "munged", "munged", "--foreground", "--force", f"--key-file={run}/munge.key"),
            *(f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed"),
            f"--log-file={self.folder}/log/munged.log",
        )
        self._until((run / "munge.socket").is_socket, 10, "munged listens")
        self._start(CONTROLLER, "slurmctld", "slurmctld", "-D", "-f", self.conf)
        for name in self.nodes:
            self.start_node(name)

    def _start(self, node: str, label: str, program: str, *words: str | Path) -> None:
        env = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.conf),
            NODE_OF_DAEMON: node,
        }
        with (self.folder / "log" / f"{label}.out").open("ab") as out:
            self._daemons[label] = subprocess.Popen(
                [find_program(program) or program, *map(str, words)],
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o022,
            )

    def _until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            if dead := [label for label, daemon in self._daemons.items() if daemon.poll() is not None]:
                raise ClusterError(f"waiting until {what}: {', '.join(dead)} ended")
            if time.monotonic() > end:
                raise ClusterError(f"waiting until {what}: not within {limit_s:g} s; {self._nodes_in_words()}")
            time.sleep(POLL_S / 2)

    def _all_idle(self) -> bool:
        try:
            states = self.node_states()
        except ClusterError:  # the controller does not listen yet
            return False
        return sorted(states) == sorted(self.nodes) and set(states.values()) == {"idle"}

    def _made_idle(self) -> bool:
        states = self.node_states()
        for name, state in states.items():
            if state.startswith(("down", "drain")) and not state.endswith("*"):
                with suppress(ClusterError):  # it has just come back by itself
                    self.resume_node(name)
        if set(states.values()) != {"idle"}:
            self._cancel_all()  # also what its own script has requeued meanwhile
            return False
        return not self.job_processes() and not self.sh("squeue", "-h")

    def _cancel_all(self) -> None:
        self.sh("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)

    def _nodes_in_words(self) -> str:
        try:
            return ", ".join(f"{node} {state}" for node, state in self.node_states().items())
        except ClusterError as error:
            return str(error)

    def _tails(self) -> str:
        """The last lines of the daemons' logs."""
        logs = sorted((self.folder / "log").glob("*")) if self._folder is not None else []
        tails = [(path.name, path.read_text(errors="replace").splitlines()[-20:]) for path in logs]
        return "\n".join(f"{name}: {line}" for name, lines in tails for line in lines)


def _members(conf: Path, node: str | None) -> list[tuple[int, bool]]:
    """Pid, and whether it is a daemon, of the processes of a cluster. A client has no node, and is none of them."""
    mine = f"SLURM_CONF={conf}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:  # ended, or another user's
            continue
        if mine not in variables:
            continue
        nodes = dict(one.decode(errors="replace").partition("=")[::2] for one in variables)
        name = nodes.get(NODE_OF_DAEMON, nodes.get(NODE_OF_JOB))
        if name is not None and node in (None, name):
            found.append((int(path.parent.name), NODE_OF_DAEMON in nodes))
    return sorted(found)


def _end(conf: Path, node: str | None, limit_s: float = 20) -> None:
    """SIGKILL until nothing is left: a process may have been starting another one meanwhile."""
    end = time.monotonic() + limit_s
    looks = 0
    while looks < 2:  # a process in the middle of an exec shows no environment
        members = _members(conf, node)
        looks = 0 if members else looks + 1
        for pid, _ in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if members and time.monotonic() > end:
            raise ClusterError(f"processes that SIGKILL does not end: {', '.join(str(pid) for pid, _ in members)}")
        time.sleep(0.02)


def _free_ports(count: int) -> int:
    """The first of so many free neighbours, below the ephemeral ports."""
    while True:
        first = random.SystemRandom().randrange(10000, 32000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first


def _guard(parent: int, conf: str, *folders: str) -> None:
    """Outlive the test process, to end the cluster of one that was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _end(Path(conf), None)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), *sys.argv[2:])
