"""The folders that a crash may leave: built from a recorded trace by two sets of rules (docs/reliability.md).

``local``: a file's bytes are durable after fsync of the file, a name after fsync of its folder. What is not yet
durable may be there or not, names in any order but that of one and the same name, bytes torn anywhere. Stricter
than ext4, whose journal keeps the order of names.

``nfs``: names are durable at once (the server is ``sync``), bytes after fsync or close. Files that are removed while
they are open may stay as ``.nfs...``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from tests.simulation.crash_recorder import Close, Entry, Mark, Sync, Trace, Tree, Truncate, Write

Rules = Literal["local", "nfs"]
ALL_NAMES = 6
"""So many changes of names that are not durable are taken in every combination; more, in pairs."""
PRODUCT = 200
"""So many combinations of names and bytes are taken at one point; more, in pairs."""
ALL_BYTES = 8
"""With so many sets of names at one point, each goes with every choice of bytes; with more, all but the whole set go
with all bytes and with none."""
PAGE = 4096
Data = Write | Truncate


class State(NamedTuple):
    """A folder after a crash.

    Attributes:
        at: operations done before the crash.
        acknowledged: steps that the caller knows to be done.
        paths: relative path -> content, None for a folder.
    """

    at: int
    acknowledged: int
    paths: dict[str, bytes | None]


def crash_states(trace: Trace, rules: Rules) -> Iterator[State]:
    """Every distinct folder (and what the caller knows) that a crash may leave, in a fixed order."""
    seen: set[tuple[int, int]] = set()
    acknowledged = 0
    for at in range(len(trace.ops) + 1):
        if at and isinstance(trace.ops[at - 1], Mark):
            acknowledged = trace.ops[at - 1].number  # type: ignore[union-attr]
        elif at and isinstance(trace.ops[at - 1], Sync):
            continue  # less is possible than before it
        for paths in _at(trace, at, rules):
            key = acknowledged, hash(tuple(sorted(paths.items(), key=lambda item: item[0])))
            if key not in seen:
                seen.add(key)
                yield State(at, acknowledged, paths)


def undisturbed(trace: Trace, at: int) -> dict[str, bytes | None]:
    """The folder after ``at`` operations, without a crash."""
    tree = _named(trace, [op for op in trace.ops[:at] if isinstance(op, Entry)], False)
    assert tree is not None
    tree.files = {**dict.fromkeys(_reachable(tree), b""), **trace.before.files}
    for op in trace.ops[:at]:
        if isinstance(op, Write | Truncate):
            tree.files[op.file] = _apply(tree.files.get(op.file, b""), [op])
    return tree.paths()


def _at(trace: Trace, at: int, rules: Rules) -> Iterator[dict[str, bytes | None]]:
    ops = trace.ops[:at]
    synced: dict[int, int] = {}
    for place, op in enumerate(ops):
        if isinstance(op, Sync) or (rules == "nfs" and isinstance(op, Close)):
            synced[op.file] = place
    entries = [(place, op) for place, op in enumerate(ops) if isinstance(op, Entry)]
    open_names = [(place, op) for place, op in entries if rules == "local" and not _durable(op, place, synced)]
    contents, pending = dict(trace.before.files), dict[int, list[Data]]()
    for place, op in enumerate(ops):
        if isinstance(op, Write | Truncate):
            if place < synced.get(op.file, -1):
                contents[op.file] = _apply(contents.get(op.file, b""), [op])
            else:
                pending.setdefault(op.file, []).append(op)
    variants = {file: _variants(contents.get(file, b""), todo) for file, todo in pending.items()}
    every = list(_names_left_out(open_names))
    few = len(every) <= ALL_BYTES
    for left_out in every:
        done = [op for place, op in entries if place not in left_out]
        for silly in (False, True) if rules == "nfs" else (False,):
            tree = _named(trace, done, silly)
            if tree is None:
                continue
            held = _reachable(tree)
            choices = {file: found for file, found in variants.items() if file in held}
            sizes = [len(found) for found in choices.values()]
            for chosen in _combinations(sizes) if few or not left_out else _extremes(sizes):
                tree.files = {**dict.fromkeys(held, b""), **contents}
                for (file, found), which in zip(choices.items(), chosen, strict=True):
                    tree.files[file] = found[which]
                yield tree.paths()


def _durable(op: Entry, place: int, synced: dict[int, int]) -> bool:
    return any(place < synced.get(folder, -1) for folder, *_ in op.changes)


def _names_left_out(names: Sequence[tuple[int, Entry]]) -> Iterator[frozenset[int]]:
    """Sets of places of changes that did not reach the disk; a change of a name needs the earlier ones of that name."""
    places = [place for place, _ in names]
    if len(places) <= ALL_NAMES:
        sets = [set(some) for size in range(len(places) + 1) for some in itertools.combinations(places, size)]
    else:
        sets = [set(places[cut:]) for cut in range(len(places), -1, -1)]
        for size in (1, 2):
            for some in itertools.combinations(places, size):
                sets += [set(some), set(places) - set(some)]
    seen = set()
    for some in sets:
        touched: set[tuple[int, str]] = set()
        closed = set()
        for place, op in names:
            own = {(folder, name) for folder, name, *_ in op.changes}
            if place in some or own & touched:
                closed.add(place)
                touched |= own
        if (frozen := frozenset(closed)) not in seen:
            seen.add(frozen)
            yield frozen


def _named(trace: Trace, done: Sequence[Entry], silly: bool) -> Tree | None:
    """The names after these changes; None where one of them could not have been."""
    tree = trace.before.copy()
    for number in trace.folders:
        tree.folders.setdefault(number, {})
    left = False
    for op in done:
        gone = []
        for folder, name, after, was in op.changes:
            names = tree.folders[folder]
            if after is None:
                names.pop(name, None)
            else:
                names[name] = after
            if was is not None and all(was != change[2] for change in op.changes):
                gone.append((folder, name, was))
        for folder, name, was in gone:
            if was in tree.folders:
                if tree.folders[was] and silly:  # rmdir of a folder with .nfs files in it fails
                    if name in tree.folders[folder]:
                        return None
                    tree.folders[folder][name] = was
            elif silly and was in op.open_files:
                tree.folders[folder][f".nfs{was:024x}"] = was
                left = True
    return None if silly and not left else tree


def _reachable(tree: Tree) -> set[int]:
    found, todo = set(), [0]
    while todo:
        for number in tree.folders[todo.pop()].values():
            if number in tree.folders:
                todo.append(number)
            else:
                found.add(number)
    return found


def _apply(content: bytes, ops: Sequence[Data]) -> bytes:
    for op in ops:
        if isinstance(op, Truncate):
            content = content[: op.size].ljust(op.size, b"\0")
        else:
            end = op.offset + len(op.data)
            content = content[: op.offset].ljust(op.offset, b"\0") + op.data + content[end:]
    return content


def _variants(durable: bytes, ops: Sequence[Data]) -> list[bytes]:
    """What a file with bytes that are not durable may hold: none, all, a part, torn, with holes. All comes first."""
    whole = _apply(durable, ops)
    found = [whole, durable]
    cuts = range(1, len(ops)) if len(ops) <= 4 else (1, len(ops) // 2, len(ops) - 1)
    found += [_apply(durable, ops[:cut]) for cut in cuts]
    for place in (0, len(ops) - 1):
        op = ops[place]
        if isinstance(op, Write) and len(op.data) > 1:
            sizes = [1, len(op.data) // 2, len(op.data) - 1]
            found += [_apply(durable, [*ops[:place], op._replace(data=op.data[:size])]) for size in sizes]
        if len(ops) > 1:
            found.append(_apply(durable, [*ops[:place], *ops[place + 1 :]]))  # one is lost, the later ones are not
    size = len(whole)
    if size > len(durable):  # the new length is there, the bytes are not
        found.append(durable.ljust(size, b"\0"))
        half = len(durable) + (size - len(durable)) // 2
        found += [whole[:half].ljust(size, b"\0"), durable.ljust(half, b"\0") + whole[half:]]
    pages = range(0, size, PAGE)
    for page in {*list(pages)[:2], *list(pages)[-1:]}:  # one page is as it was
        old = durable[page : page + PAGE].ljust(min(PAGE, size - page), b"\0")
        found.append(whole[:page] + old + whole[page + PAGE :])
    return list(dict.fromkeys(found))


def _extremes(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All bytes there, and none."""
    yield (0,) * len(sizes)
    yield tuple(min(1, size - 1) for size in sizes)


def _combinations(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All combinations where they are few; else each choice, and each pair of choices, the rest as 0 or as 1."""
    total = 1
    for size in sizes:
        total *= size
    if total <= PRODUCT:
        yield from itertools.product(*map(range, sizes))
        return
    seen = set()
    for rest in (0, 1):
        base = [min(rest, size - 1) for size in sizes]
        for one, two in itertools.combinations(range(len(sizes)), 2):
            for first, second in itertools.product(range(sizes[one]), range(sizes[two])):
                chosen = list(base)
                chosen[one], chosen[two] = first, second
                if tuple(chosen) not in seen:
                    seen.add(tuple(chosen))
                    yield tuple(chosen)
