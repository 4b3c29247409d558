"""Which rank this process is, of how many, and where rank 0 is: from torchrun's variables or those of an srun step.

``RANK`` and ``WORLD_SIZE`` (torchrun, ``marc-launch local``, Ray) win, also inside a Slurm job. Else a task of an srun
step is a rank. A batch script or the shell of salloc is one process, whatever SLURM_NTASKS says: it is no such task.

Under srun nobody names an address, and a compute node may have no name that others know. So rank 0 listens on a free
port and publishes the ways to it in a file of the shared run folder; the others take the first that works. The file
belongs to one attempt of one step: a requeued job never reads that of the attempt before.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from marc_dist.config import LaunchError

STEP_LIMIT = 0xFFFFFFF0
"""Slurm numbers from here are no steps of tasks: batch script, interactive shell, external processes."""
CONNECT_S = 2.0
POLL_S = (0.1, 1.0)
"""First and longest pause between two looks for rank 0's file."""
BACKLOG = 4096
LOOPBACKS = ("127.0.0.1", "::1")
SIOCGIFFLAGS, SIOCGIFADDR, IFF_UP = 0x8913, 0x8915, 1


class World(NamedTuple):
    """Where this process stands among the others.

    Attributes:
        rank: 0 to world - 1.
        world: number of processes.
        local_rank: number among the processes of this node.
    """

    rank: int
    world: int
    local_rank: int


class Meeting(NamedTuple):
    """How this rank gets to rank 0.

    Attributes:
        address: host name, IPv4 or IPv6 literal of rank 0 as this rank reaches it.
        port: TCP port there.
        listen_fd: rank 0's listening socket; None on other ranks, and when rank 0 has to open ``port`` itself.
        token: what rank 0's store must answer, so that a stranger on the same port is noticed; None when unknown.
        own: address by which this rank's node takes part; None when unknown, or when another node must tell it.
        file: where rank 0 published itself; None when the environment named the address.
    """

    address: str
    port: int
    listen_fd: int | None = None
    token: str | None = None
    own: str | None = None
    file: Path | None = None


def place_from_env(env: Mapping[str, str]) -> World:
    """Rank, world and local rank: torchrun's variables, else the task of an srun step, else one process.

    Raises:
        LaunchError: half of the variables are set, or they contradict each other.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return _torchrun(env)
    step = env.get("SLURM_STEP_ID", "")
    return _task(env) if step.isdecimal() and int(step) < STEP_LIMIT else World(0, 1, 0)


def _torchrun(env: Mapping[str, str]) -> World:
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if other not in env:
            raise LaunchError(
                f"environment: {name} is set but {other} is not; set both, or neither for one process or under srun"
            )
    rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    local = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank
    if world < 1:
        raise LaunchError(f"WORLD_SIZE: expected at least 1 process, got {world}")
    if not 0 <= rank < world:
        raise LaunchError(f"RANK: expected 0 to {world - 1} (WORLD_SIZE is {world}), got {rank}")
    if local < 0:
        raise LaunchError(f"LOCAL_RANK: expected 0 or more, got {local}")
    absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if world > 1 and absent:
        raise LaunchError(f"environment: WORLD_SIZE is {world} but {' and '.join(absent)} not set; use marc-launch")
    return World(rank, world, local)


def _task(env: Mapping[str, str]) -> World:
    """The task of an srun step. sbatch hands the variables of the step it is called in on to its batch script."""
    remedy = "start with srun, or unset SLURM_STEP_ID for one process"
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    absent = [name for name in (size, "SLURM_PROCID", "SLURM_LOCALID") if name not in env]
    if absent:
        raise LaunchError(f"environment: SLURM_STEP_ID is set but {' and '.join(absent)} not; {remedy}")
    rank, world, local = _number(env, "SLURM_PROCID"), _number(env, size), _number(env, "SLURM_LOCALID")
    if world == 1 and rank == 0:
        return World(0, 1, 0)
    if "SLURM_NTASKS" in env and _number(env, "SLURM_NTASKS") != world:
        raise LaunchError(
            f"environment: {size} is {world} but SLURM_NTASKS is {env['SLURM_NTASKS']}, so SLURM_STEP_ID is that of "
            f"another step; {remedy}"
        )
    if not 0 <= local <= rank < world:
        raise LaunchError(
            f"environment: expected 0 <= SLURM_LOCALID <= SLURM_PROCID < {size}, got {local}, {rank}, {world}; {remedy}"
        )
    return World(rank, world, local)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise LaunchError(
            f"{name}: expected an integer, got {env[name]!r}; unset it or start with marc-launch"
        ) from None


def meet(here: World, env: Mapping[str, str], folder: Path | None, limit_s: float) -> Meeting:
    """Find rank 0, or be found.

    Args:
        here: this process, of a world of at least 2.
        env: MASTER_ADDR and MASTER_PORT are followed when set (MARC_MASTER_FD: their listener, which rank 0 inherited);
            else the variables of an srun step.
        folder: directory that all ranks see; rank 0 makes it when missing.
        limit_s: seconds after which a rank that cannot reach rank 0 gives up.

    Raises:
        LaunchError: rank 0 cannot publish itself, or is not found or not reached within the limit.
    """
    given = [name for name in ("MASTER_ADDR", "MASTER_PORT") if env.get(name)]
    if len(given) == 2:
        inherited = here.rank == 0 and "MARC_MASTER_FD" in env
        listen_fd = _number(env, "MARC_MASTER_FD") if inherited else None
        return Meeting(env["MASTER_ADDR"], _number(env, "MASTER_PORT"), listen_fd)
    if given:
        raise LaunchError(
            f"environment: {given[0]} is set, the other is not; set MASTER_ADDR and MASTER_PORT, or neither under srun"
        )
    if folder is None:
        raise LaunchError(f"rank {here.rank}: no folder to meet the other ranks in; set MASTER_ADDR and MASTER_PORT")
    step = f"{env.get('SLURM_JOB_ID', '')}.{env.get('SLURM_STEP_ID', '')}"
    file = folder / f".meet-{step}-{env.get('SLURM_RESTART_COUNT') or 0}.json"
    return _publish(file, env) if here.rank == 0 else _find(file, here, env, limit_s)


def _one_node(env: Mapping[str, str]) -> bool:
    return env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES")) == "1"


def _node(env: Mapping[str, str]) -> str:
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def _publish(file: Path, env: Mapping[str, str]) -> Meeting:
    alone, token = _one_node(env), secrets.token_hex(8)
    with _listen(alone) as listener:
        port = listener.getsockname()[1]
        own, trouble = _first_that_answers(LOOPBACKS, port, time.monotonic() + 2 * CONNECT_S)
        if own is None:
            raise LaunchError(f"rank 0 on {_node(env)}: cannot reach itself over loopback; is lo up? {trouble}")
        told = {"addresses": [own[0]] if alone else candidates(env), "port": port, "token": token, "node": _node(env)}
        fresh = file.with_name(file.name + ".tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(told))
            fresh.replace(file)
        except OSError as error:
            raise LaunchError(
                f"rank 0 on {_node(env)}: cannot write {file} ({error.strerror}); make it writable"
            ) from None
        return Meeting(own[0], port, listener.detach(), token, own[0] if alone else None, file)


def _listen(alone: bool) -> socket.socket:
    """A listener on a free port: of loopback when nobody else needs to reach it, else of all interfaces."""
    if alone:
        with suppress(OSError):  # no IPv4 here
            return socket.create_server((LOOPBACKS[0], 0), backlog=BACKLOG)
        return socket.create_server((LOOPBACKS[1], 0), family=socket.AF_INET6, backlog=BACKLOG)
    with suppress(OSError, ValueError):  # no IPv6 here
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    return socket.create_server(("", 0), backlog=BACKLOG)


def candidates(env: Mapping[str, str]) -> list[str]:
    """Names and numeric addresses under which other nodes may reach this one, best first.

    First the interfaces that GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME ask for, then the node's names, which mean the
    right network where they resolve, then every other address. Loopback is never among the numbers; a node that is
    *named* 127.0.1.1 (a cluster on one machine) is reached under that name.
    """
    found = _addresses()
    wanted = [f"={env['GLOO_SOCKET_IFNAME']}"] if env.get("GLOO_SOCKET_IFNAME") else []
    wanted += [env["NCCL_SOCKET_IFNAME"]] if env.get("NCCL_SOCKET_IFNAME") else []
    asked = [address for spec in wanted for name, address in found if _means(spec, name)]
    numbers = [address for _, address in found if not ipaddress.ip_address(address).is_loopback]
    return list(dict.fromkeys([*asked, _node(env), socket.gethostname(), *numbers]))


def _means(spec: str, name: str) -> bool:
    """Whether NCCL's list of interfaces means this one: prefixes; after ``=`` whole names; after ``^`` all others."""
    words = spec.removeprefix("^")
    exact = words.startswith("=")
    hit = any(name == word if exact else name.startswith(word) for word in words.removeprefix("=").split(",") if word)
    return hit != spec.startswith("^")


def _addresses() -> list[tuple[str, str]]:
    """(interface, address) of all interfaces that are up: IPv4, then IPv6 without link-local ones. Linux."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            with suppress(OSError):  # without an IPv4 address
                (flags,) = struct.unpack("H", fcntl.ioctl(probe, SIOCGIFFLAGS, request)[16:18])
                address = socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24])
                found += [(name, address)] if flags & IFF_UP else []
    with suppress(OSError):  # a kernel without IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            number, _, _, _, _, name = line.split()
            ipv6 = ipaddress.IPv6Address(bytes.fromhex(number))
            found += [] if ipv6.is_link_local else [(name, str(ipv6))]
    return found


def interface_of(address: str) -> str | None:
    """The interface of this machine that has the numeric address; None when none has."""
    asked = ipaddress.ip_address(address.split("%")[0])
    if asked.is_loopback:
        return "lo"  # all of 127/8, of which it is listed under one address only
    return next((name for name, own in _addresses() if ipaddress.ip_address(own) == asked), None)


def _find(file: Path, here: World, env: Mapping[str, str], limit_s: float) -> Meeting:
    deadline, pause = time.monotonic() + limit_s, POLL_S[0]
    while True:
        told, trouble = _read(file)
        if told is not None:
            met, trouble = _first_that_answers(told["addresses"], told["port"], deadline)
            if met is not None:
                beside = told["node"] == _node(env) and not _one_node(env)
                return Meeting(met[0], told["port"], None, told["token"], None if beside else met[1], file)
        if time.monotonic() >= deadline:
            raise LaunchError(f"rank {here.rank} on {_node(env)}: rank 0 not met within {limit_s:g} s: {trouble}")
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, POLL_S[1])


def _read(file: Path) -> tuple[dict[str, Any] | None, str]:
    """What rank 0 published, or why not."""
    try:
        os.listdir(file.parent)  # noqa: PTH208 - NFS remembers that a file is missing until its directory is read anew
        told = json.loads(file.read_text())
        return {key: told[key] for key in ("addresses", "port", "token", "node")}, ""
    except FileNotFoundError:
        return None, f"it did not write {file}; is that folder shared by all nodes? see rank 0's log"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{file} cannot be read ({type(error).__name__}: {error})"


def _first_that_answers(addresses: Sequence[str], port: int, deadline: float) -> tuple[tuple[str, str] | None, str]:
    """Numeric (address there, address here) of the first candidate that takes a connection, or why none does."""
    reasons = []
    for address in addresses:
        limit = max(0.1, min(CONNECT_S, deadline - time.monotonic()))
        try:
            with socket.create_connection((address, port), timeout=limit) as connection:
                return (connection.getpeername()[0], connection.getsockname()[0]), ""
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
            reasons.append(f"{address}: {getattr(error, 'strerror', None) or error}")
    remedy = "let nodes reach each other's ports, or name the network in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    return None, f"port {port} does not answer ({'; '.join(reasons)}); {remedy}"
