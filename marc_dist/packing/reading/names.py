"""What names say: which picture, which class, which split, and which names are a folder's and never a class's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

PICTURE_ENDS = r"(?i)jpe?g|jfif|png|tiff?|bmp|gif|webp|jp2"
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train", "tr": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "valset": "val", "dev": "val",
    "test": "test", "testing": "test", "tst": "test", "te": "test", "testset": "test",
}  # fmt: skip
BESIDE_SPLIT = {
    "image", "images", "img", "imgs", "data", "dataset", "set", "split", "pictures", "labeled", "labelled", "label",
    "labels", "mask", "masks", "annotation", "annotations", "list",
}  # fmt: skip
MASK_WORDS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "ann", "anns", "anno", "gt", "gts", "groundtruth",
    "truth", "seg", "segmentation", "lab", "lbl",
}  # fmt: skip
CORE = {
    "image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "jpg", "jpeg", "jpegs",
    "png", "pngs", "tif", "tiff", "tifs", "bmp", "webp", "mask", "masks", "label", "labels", "labelled", "labeled",
    "annotation", "annotations", "anno", "annos", "ann", "anns", "gt", "gts", "groundtruth", "seg", "segmentation",
    "segmentations", "trainval", "dataset", "datasets", "dir", "split", "splits", "xml", "xmls", "json", "bbox",
    "bboxes", *SPLIT_WORDS,
}  # fmt: skip
BESIDE = {
    "color", "colour", "colors", "colours", "gray", "grey", "rgb", "rgba", "irrg", "rgbir", "index", "indexed", "raw",
    "all", "set", "data", "file", "files", "part", "parts", "class", "classes", "object", "objects", "semantic",
    "instance", "instances", "panoptic", "ground", "truth", "original", "orig", "new", "final", "small", "full", "main",
    "opt", "sat", "id", "ids", "is", "folder", "participants", "the", "of", "and", "for", "with", "no", "un", "x",
    "ortho", "unlabeled",
}  # fmt: skip
NO_CLASS = {
    "background", "bg", "unlabelled", "unlabeled", "unknown", "nodata", "novalue", "none", "nothing", "null", "void",
    "ignore", "ignored", "unclassified", "undefined", "unused", "invalid",
}  # fmt: skip


def name_of(name: str) -> str:
    """``Images/Beach/beach_1.JPG`` -> ``images/beach/beach_1``."""
    path = PurePosixPath(composed(name).strip().replace("\\", "/"))
    return (path.parent / stem_of(path.name)).as_posix().lower().lstrip("/")


def stem_of(name: str) -> str:
    """``Images/Beach/beach_1.JPG`` -> ``beach_1``: what pictures, masks and table rows are paired by."""
    last = composed(name).strip().replace("\\", "/").rpartition("/")[2]
    base, dot, extension = last.rpartition(".")
    return (base if dot and re.fullmatch(PICTURE_ENDS, extension) else last).lower()


def composed(name: str) -> str:
    """A name with its accents composed (NFC): macOS writes them apart, tables together, and both look alike."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def plain(name: str) -> str:
    """A name without case, blanks and marks: ``File Name`` = ``file_name``."""
    return re.sub(r"[\W_]+", "", composed(name).casefold())


def normal_name(name: str) -> str:
    """A class name without case, blanks, hyphens, underscores and the plural's s: ``bare-soil`` = ``Bare Soil``."""
    bare = plain(name)
    return bare[:-1] if len(bare) > 3 and bare.endswith("s") and not bare.endswith("ss") else bare


def natural_key(stem: str) -> tuple[str, int, str]:
    """Order of MATLAB tables: name in lower case, then number."""
    match = re.fullmatch(r"(.*?)_?(\d+)", stem.lower())
    return (match[1], int(match[2]), stem) if match else (stem.lower(), -1, stem)


def words_of(name: str) -> list[str]:
    """``ImagesPNG2`` -> ``images, png``; ``label_color`` -> ``label, color``; numbers are no words."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", apart)]


def split_word(name: str) -> str | None:
    """``Train``, ``train2017``, ``images_tr``, ``val_set`` -> ``train``, ``train``, ``train``, ``val``; else None."""
    words = [word for word in words_of(name) if word not in BESIDE_SPLIT]
    return SPLIT_WORDS.get(words[0]) if len(words) == 1 else None


def is_folder_word(name: str) -> bool:
    """Whether a name is a folder's (images, train, masks_png, label_color) and no class's.

    Args:
        name: of a folder or a column.
    """
    words = words_of(name)
    known = set(words) <= CORE | BESIDE
    return bool(words) and known and (bool(set(words) & CORE) or {"ground", "truth"} <= set(words))


def is_mask_word(name: str) -> bool:
    """Whether a folder's name says that it holds masks: masks_png, label_color, ann_dir, SegmentationClass."""
    return bool(set(words_of(name)) & MASK_WORDS)


def is_no_class(name: str) -> bool:
    """Whether a name in a class list says that there is nothing: background, unlabelled, no data.

    Args:
        name: of a class.
    """
    return "".join(words_of(name)) in NO_CLASS


def tree_parts(folders: Iterable[str], dropped: Collection[str] = ()) -> tuple[str, ...]:
    """The folders above a file, such that a picture and its mask, in parallel trees, have equal ones.

    ``Train/Rural/images_png`` and ``train/Rural/masks_png`` both give ``train, rural``.

    Args:
        folders: as written.
        dropped: further names to leave out, lower case.
    """
    parts = []
    for folder in folders:
        split = split_word(folder)
        if split is not None:
            parts.append(split)
        elif folder.lower() not in dropped and not is_folder_word(folder):
            parts.append(folder.lower())
    return tuple(parts)
