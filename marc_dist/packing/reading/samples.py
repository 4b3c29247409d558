"""The samples found in a download, and the checks that they pass before anything is packed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.config.suggest import suggestion
from marc_dist.geography.acquisition import UNKNOWN, Acquisition
from marc_dist.packing.compact import Compact
from marc_dist.packing.reading.names import composed, normal_name
from marc_dist.packing.reading.recipes import Recipe

Labels = dict[str, tuple[int, ...]]
"""Key of a picture -> class numbers, ascending."""
NAMED_SIZES = 60  # so many odd pictures are listed by name, more are counted


@dataclass(frozen=True)
class LabelledPicture:
    """One picture to be packed.

    Attributes:
        path: where it lies, as a text: samples are made anew at each pass, and a ``Path`` takes longer than all else.
        origin: its place inside the download, kept in the shard.
        labels: class numbers, ascending.
        scene: its scene, or empty.
        split: its split.
        taken: where and when it was taken, as far as that is known.
    """

    path: str
    origin: str
    labels: tuple[int, ...]
    scene: str
    split: str
    taken: Acquisition = UNKNOWN

    @property
    def file(self) -> Path:
        """Where it lies."""
        return Path(self.path)


def compact_samples(
    rows: Iterable[tuple[Path, str, tuple[int, ...], str, str, Acquisition]],
) -> Compact[LabelledPicture]:
    """Many pictures to be packed, in little memory.

    Args:
        rows: folder in which the download begins, place below it, labels, scene, split and acquisition of each, in
            order.
    """
    roots: dict[Path, int] = {}
    shared: dict[tuple[int, ...] | str, tuple[int, ...] | str] = {}  # one object for equal ones: packed once a block

    def one(value: tuple[int, ...] | str) -> tuple[int, ...] | str:
        return shared.setdefault(value, value)

    def made(plain: tuple[int, str, tuple[int, ...], str, str, tuple[bytes, str, str]]) -> LabelledPicture:
        root, place, labels, scene, split, taken = plain
        return LabelledPicture(f"{folders[root]}/{place}", composed(place), labels, scene, split, Acquisition(*taken))

    plain = (
        (roots.setdefault(root, len(roots)), place, one(labels), one(scene), one(split), tuple(taken))
        for root, place, labels, scene, split, taken in rows
    )
    samples = Compact(plain, made)
    folders = list(map(str, roots))
    return samples


def hold_samples(samples: Iterable[LabelledPicture]) -> Compact[LabelledPicture]:
    """Pictures to be packed that exist already, wherever their downloads begin, in little memory."""

    def made(plain: tuple[str, str, tuple[int, ...], str, str, tuple[bytes, str, str]]) -> LabelledPicture:
        return LabelledPicture(*plain[:5], Acquisition(*plain[5]))

    plain = ((one.path, one.origin, one.labels, one.scene, one.split, tuple(one.taken)) for one in samples)
    return Compact(plain, made)


@dataclass
class Source:
    """What was found in a download.

    Attributes:
        recipe: of the data set.
        classes: names in order.
        samples: in the order of their places.
        warnings: everything odd that was let pass, one line each.
        allow: names of checks that may fail.
        beside: further files of the shard folder: name -> content.
        asked: what a later call for the same data set must ask for, too: rules of the recipe as it was given, words.
        drawn: whether the splits were drawn, and do not stand in the download.
    """

    recipe: Recipe
    classes: tuple[str, ...] = ()
    samples: Compact[LabelledPicture] = field(default_factory=Compact)
    warnings: list[str] = field(default_factory=list)
    allow: frozenset[str] = frozenset()
    beside: dict[str, str] = field(default_factory=dict)
    asked: Mapping[str, object] = field(default_factory=dict)
    drawn: bool = False

    def numbers(self, names: Iterable[str], place: str) -> tuple[int, ...]:
        """Class numbers of names, ascending: as written, else by sense or by another spelling of the recipe.

        Args:
            names: of classes.
            place: where they stand, for a message.

        Raises:
            DataError: a name that is no class.
        """
        exact = {name: number for number, name in enumerate(self.classes)}
        by_sense = {normal_name(n): i for i, entry in enumerate(self.recipe.classes) for n in entry.aliases}
        by_sense |= {normal_name(name): number for name, number in exact.items()}
        found = set()
        for name in names:
            number = exact.get(name, by_sense.get(normal_name(name)))
            if number is None:
                raise DataError(f"{place}: {name!r} is not in the class list{suggestion(name, self.classes)}")
            found.add(number)
        return tuple(sorted(found))

    def check(self, name: str, faults: Sequence[str], message: str) -> None:
        """Stop at a failed check, or note it when the recipe or ``--allow`` lets it pass.

        Args:
            name: of the check, one of the recipe's ``policies``.
            faults: what is at fault, an entry each; empty = the check passes.
            message: what is wrong with all of them.

        Raises:
            DataError: the check fails and may not.
        """
        if not faults:
            return
        shown = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        text = f"{message}: {shown}"
        if name not in self.allow and getattr(self.recipe.policies, name) == "stop":
            raise DataError(f"{text}; to go on all the same: --allow {name}")
        self.warnings.append(f"{name}: {text}")


def expectations(source: Source) -> None:
    """Compare with what the published set holds."""
    expect, samples = source.recipe.expect, source.samples
    if not source.classes:
        raise DataError(f"{source.recipe.title}: no classes")
    low, high = expect.labels_per_image
    sizes: Counter[str] = Counter()
    found: dict[str, Counter[int]] = defaultdict(Counter)
    empty, strange = [], []
    for sample in samples:
        sizes[sample.split] += 1
        found[sample.split].update(sample.labels)
        if not sample.labels:
            empty.append(sample.origin)
        elif not low <= len(sample.labels) <= high:
            strange.append(f"{sample.origin} ({len(sample.labels)})")
    every = sum(found.values(), Counter[int]())
    faults = []
    if expect.num_images is not None and len(samples) != expect.num_images:
        faults.append(f"{len(samples)} pictures instead of {expect.num_images}")
    for split, num in expect.num_per_split.items():
        if sizes[split] != num:
            faults.append(f"{sizes[split]} in {split} instead of {num}")
    source.check("counts", faults, "not the published number of pictures")
    source.check("empty_labels", empty, f"pictures without any label ({len(empty)}, kept as negatives)")
    source.check("label_range", strange, f"expected {low} to {high} labels a picture; is the table damaged?")
    for split, counts in expect.label_counts.items():
        of_split = every if split == "all" else found[split]
        differ = [
            f"{source.classes[label]} {of_split[label]} instead of {num}"
            for label, num in enumerate(counts)
            if of_split[label] != num
        ]
        source.check("label_counts", differ, f"{split}: pictures per class differ from the published ones")
    lonely = [name for label, name in enumerate(source.classes) if not every[label]]
    if lonely:
        source.warnings.append(f"classes that no picture carries: {', '.join(lonely)}")


def odd_sizes(source: Source, sizes: Iterable[tuple[str, tuple[int, int]]]) -> None:
    """Note pictures of another size than the published one; it was let pass while packing.

    Args:
        source: of the recipe.
        sizes: key, and width and height, of each picture.
    """
    expect = source.recipe.expect.image_size
    if expect is None:
        return
    odd: dict[tuple[int, int], list[str]] = defaultdict(list)
    for key, size in sizes:
        if size != expect:
            odd[size].append(key)
    if not odd:
        return
    total = sum(map(len, odd.values()))
    groups = [
        f"{width}x{height} " + (", ".join(keys) if total <= NAMED_SIZES else f"({len(keys)})")
        for (width, height), keys in sorted(odd.items())
    ]
    source.warnings.append(f"size: {total} pictures are not {expect[0]}x{expect[1]}: {'; '.join(groups)}")
