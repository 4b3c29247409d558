"""Recipes: everything that is particular to one data set, as a YAML file that people copy and edit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from marc_dist.config import ConfigError, build, find_preset, load_yaml
from marc_dist.config.section import Section
from marc_dist.packing.reading.columns import Columns
from marc_dist.packing.reading.masks import MaskRule

Channel = Annotated[int, Field(ge=0, le=255)]
Policy = Literal["stop", "warn"]
LabelKind = Literal["table", "masks", "folders", "coco", "objects", "yolo"]


class ClassEntry(Section):
    """One class: its name, other spellings, its colour in masks."""

    name: str = Field(min_length=1, description="name shown everywhere")
    aliases: tuple[str, ...] = Field(
        (), description="other spellings in label tables, beyond case, hyphens and plurals"
    )
    colour: tuple[Channel, Channel, Channel] | None = Field(None, description="colour in masks, red green blue")


class PictureEntry(Section):
    """Which of the picture files are the pictures."""

    folders: tuple[str, ...] = Field((), description="names of folders that hold the pictures; empty = anywhere")
    suffix: str = Field("", description="end of the pictures' names that the names of their labels lack: _sat")


class TableEntry(Section):
    """Which column of a label table is which; what is empty is found by name and content."""

    image: str = Field("", description="column that names the pictures")
    labels: str = Field("", description="column that holds names of classes")
    split: str = Field("", description="column that holds the split")
    ignore: tuple[str, ...] = Field((), description="columns that are no labels")
    parts: bool = Field(False, description="every table that `tables` names holds some of the rows")

    def columns(self) -> Columns:
        """For the reader of tables."""
        return Columns(self.image, self.labels, self.split, self.ignore)


class MaskEntry(Section):
    """How masks are told from pictures, and read."""

    folders: tuple[str, ...] = Field((), description="names of folders that hold the masks")
    suffix: str = Field("", description="end of the masks' names that the pictures' names lack: _mask")
    index_orders: Mapping[str, Mapping[int, str]] = Field({}, description="index tables by name: value -> class name")
    ignore_indices: tuple[int, ...] = Field((), description="values that mean nothing")
    ignore_colours: tuple[tuple[Channel, Channel, Channel], ...] = Field((), description="colours that mean nothing")
    min_area_px: int = Field(1, ge=1, description="pixels from which a class counts as present")
    min_share: float = Field(
        0.0, ge=0, le=1, description="share of a mask's pixels from which a class counts as present"
    )


class PlaceEntry(Section):
    """Where it stands where and when pictures were taken; columns that are left empty are found by their names."""

    tags: bool = Field(True, description="read footprint, CRS, date and scene from GeoTIFF tags")
    crs: str = Field("", description="CRS of TIFF files that have coordinates and no CRS: EPSG:32633")
    tables: tuple[str, ...] = Field((), description="names of tables that say it, * for any text, the preferred first")
    image: str = Field("", description="column of those tables that names the pictures")
    lat: str = Field("", description="column of latitude, degrees")
    lon: str = Field("", description="column of longitude, degrees")
    geometry: str = Field("", description="column of the footprint: WKT, WKB, GeoJSON or [west, south, east, north]")
    date: str = Field("", description="column of the date of acquisition")
    scene: str = Field("", description="column of the scene that pictures were cut from")
    columns_crs: str = Field("", description="CRS of lon, lat and geometry; empty = WGS84, or what GeoParquet says")
    side_m: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="side of the square around lon, lat that is the footprint, metres; null = a point",
    )
    date_pattern: str = Field(
        "", description="regular expression that finds the date in a picture's name: _(\\d{8}T\\d{6})_"
    )

    @field_validator("date_pattern")
    @classmethod
    def _has_one_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups if value else 1
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"expected a regular expression ({error})") from None
        if groups != 1:
            raise ValueError(f"expected one group in brackets, the date, got {groups}")
        return value

    @model_validator(mode="after")
    def _both_or_none(self) -> PlaceEntry:
        if bool(self.lat) != bool(self.lon):
            raise ValueError("expected both lat and lon, or neither")
        return self


class SplitEntry(Section):
    """Where the splits come from: folders of the download, lists, a column of the table, or shares drawn by hash."""

    folders: Mapping[str, str] = Field({}, description="split -> name of the folder that holds its pictures")
    lists: Mapping[str, str] = Field({}, description="split -> file that names its pictures: a list, or a label file")
    names: Mapping[str, tuple[str, ...]] = Field(
        {}, description="split -> names of its pictures, no extension, * for any text"
    )
    shares: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = Field({}, description="split -> share of every scene")
    seed: int = Field(0, ge=0, description="of the draw by hash")
    by: str = Field(
        "",
        description="with shares: what is drawn instead of pictures, so that it lies in one split: grid (cells of km), "
        "scene, or a column of a table: country",
    )
    km: float | None = Field(None, gt=0, le=5000, description="side of a cell, with by: grid")
    source: str = Field("", description="where this split comes from, one line")

    @model_validator(mode="after")
    def _one_kind(self) -> SplitEntry:
        if sum(map(bool, (self.folders, self.lists, self.names, self.shares))) != 1:
            raise ValueError("expected either folders, lists, names or shares")
        if self.shares and abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares must add up to 1, got {sum(self.shares.values())}")
        if self.by and not self.shares:
            raise ValueError("by: expected with shares")
        if (self.by == "grid") != (self.km is not None):
            raise ValueError("expected km, the side of a cell, with by: grid, and only there")
        return self

    @property
    def column(self) -> str:
        """The column of a table that splits are drawn by; empty: none is."""
        return "" if self.by in ("grid", "scene") else self.by


class Expectation(Section):
    """What the published set holds; differences are told."""

    num_images: int | None = Field(None, ge=1, description="pictures")
    num_per_split: Mapping[str, int] = Field({}, description="pictures of each split")
    label_counts: Mapping[str, tuple[int, ...]] = Field({}, description="split (or `all`) -> pictures of each class")
    image_size: tuple[int, int] | None = Field(None, description="width and height of every picture, pixels")
    labels_per_image: tuple[int, int] = Field((1, 10_000), description="smallest and largest number of labels")
    stem: str | None = Field(None, description="regular expression of the pictures' names, lower case, no extension")

    @field_validator("stem")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"expected a regular expression ({error})") from None
        return value


class Policies(Section):
    """What happens when a check fails: stop (unless --allow names it) or warn."""

    counts: Policy = Field("stop", description="number of pictures differs from the published one")
    label_counts: Policy = Field("warn", description="pictures per class differ from the published numbers")
    size: Policy = Field("stop", description="a picture has another size")
    missing: Policy = Field("stop", description="a picture without labels")
    surplus: Policy = Field("stop", description="labels without a picture")
    doubled: Policy = Field("stop", description="two files of one name")
    empty_labels: Policy = Field("stop", description="a picture that carries no label")
    label_range: Policy = Field("stop", description="more labels on a picture than the published set has")
    duplicates: Policy = Field("warn", description="equal pixels in two splits: a leak")
    class_names: Policy = Field("stop", description="a class, taken from the data, with a folder's name: images, train")
    bands: Policy = Field(
        "stop", description="a picture has a fourth band, which would be dropped; or lacks the file of a band"
    )
    no_place: Policy = Field("stop", description="splits are drawn by place, and a picture has none to be drawn by")


class Recipe(Section):
    """One data set."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="short name")
    title: str = Field(min_length=1, description="full name")
    licence: str = Field("not stated", description="terms of use, as far as known")
    citation: str = Field("", description="what to cite")
    download: str = Field("", description="where a person gets it")
    layout: str = Field("", description="what the download looks like inside")
    builtin: Literal["sample"] | None = Field(None, description="drawn by us instead of downloaded")
    classes: tuple[ClassEntry, ...] = Field((), description="classes in order; empty = taken from the data")
    labels: tuple[LabelKind, ...] = Field(min_length=1, description="where labels may come from, the preferred first")
    tables: tuple[str, ...] = Field((), description="file names of label tables, * for any text, the preferred first")
    table: TableEntry = TableEntry()
    separator: str | None = Field(None, min_length=1, description="between the names in a `labels` column; null = seen")
    annotations: tuple[str, ...] = Field(
        (), description="names of COCO, VOC, JSON or YOLO files, * for any text: instances_*.json"
    )
    pictures: PictureEntry = PictureEntry()
    masks: MaskEntry = MaskEntry()
    recognise: bool = Field(False, description="find out the layout, by structure; what is said here is then a default")
    ignore: tuple[str, ...] = Field((), description="names of files that are no data, lower case")
    pair_by: Literal["name", "folder_and_name", "path", "tree"] = Field(
        "name",
        description="what pairs a picture with its labels; `path`: names may repeat from folder to folder; `tree`: as "
        "path, in parallel trees: folders that only tell pictures from masks (images, masks_png) do not count",
    )
    tile: int | None = Field(
        None, ge=16, description="side of the tiles, pixels, into which pictures and masks are cut; null = as they are"
    )
    bands: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ...] = Field(
        (),
        description="names of the bands of every picture, in the order of its file: [B02, B03, B04, B08]; TIFFs of 8 "
        "or 16 bits or floats are then kept as they are",
    )
    band_files: str = Field(
        "", description="one file a band: how the files' names end, {band} for its name: _{band}; empty = one a picture"
    )
    band_resampling: Literal["nearest", "bilinear", "cubic"] = Field(
        "nearest", description="one file a band: how coarser bands get the pixels of the finest"
    )
    nodata: float | None = Field(
        None, description="value in the bands that stands for none; null = what the first file says"
    )
    companions: tuple[str, ...] = Field((), description="folders beside the download that may hold its pictures")
    tif: Literal["png", "keep"] = Field("png", description="TIFF pictures: stored as lossless PNG, or as they are")
    scene: Literal["folder", "name", "none"] = Field("none", description="where the scene of a picture is written")
    place: PlaceEntry = PlaceEntry()
    splits: SplitEntry
    expect: Expectation = Expectation()
    policies: Policies = Policies()

    @model_validator(mode="before")
    @classmethod
    def _first_band_stands_for_all(cls, values: Any) -> Any:
        """One file a band: the file of the first band is the picture, and its name lacks the band's."""
        if not isinstance(values, dict) or not values.get("band_files") or not values.get("bands"):
            return values
        pictures = values.get("pictures") or {}
        if not isinstance(pictures, dict) or pictures.get("suffix"):
            return values
        end = str(values["band_files"]).replace("{band}", str(values["bands"][0]))
        return {**values, "pictures": {**pictures, "suffix": end}}

    @model_validator(mode="after")
    def _bands_fit(self) -> Recipe:
        if len(set(map(str.lower, self.bands))) < len(self.bands):
            raise ValueError(f"bands: expected different names, got {', '.join(self.bands)}")
        if self.band_files and (not self.bands or "{band}" not in self.band_files):
            raise ValueError(
                f"band_files: expected {{band}} in it, and the names in `bands`, got {self.band_files!r} and "
                f"{len(self.bands)} bands"
            )
        if self.bands and self.tile is not None:
            raise ValueError("tile: expected without bands; cut the pictures first, as with gdal_retile.py")
        if not self.bands and self.nodata is not None:
            raise ValueError("nodata: expected with bands")
        return self

    @model_validator(mode="after")
    def _tiles_are_in_trees(self) -> Recipe:
        if self.tile is not None and (self.pair_by != "tree" or self.recognise):
            raise ValueError("tile: expected with pair_by: tree, and not with recognise")
        return self

    @model_validator(mode="after")
    def _one_count_a_class(self) -> Recipe:
        for split, counts in self.expect.label_counts.items():
            if len(counts) != len(self.classes):
                raise ValueError(
                    f"expect.label_counts.{split}: expected {len(self.classes)} numbers, one a class, got {len(counts)}"
                )
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(entry.name for entry in self.classes)

    def rules(self) -> dict[str, object]:
        """What a folder was packed by, and pictures that are added later must be, too; plain values."""
        kept = {"name", "tif", "scene", "pair_by", "separator", "tile", "splits"}
        kept |= {"bands", "band_files", "band_resampling", "nodata"} if self.bands else set()
        rules = self.model_dump(mode="json", include=kept, exclude={"splits": {"source"}})
        if not self.splits.by:  # as folders of an earlier state have it
            rules["splits"] = {key: value for key, value in rules["splits"].items() if key not in ("by", "km")}
        return rules

    def mask_rule(self, order: str | None = None) -> MaskRule:
        """How to read this set's masks.

        Args:
            order: which index table; the only one when there is just one.

        Raises:
            ConfigError: no such table.
        """
        names = self.class_names
        orders = self.masks.index_orders
        if order is not None and order not in orders:
            raise ConfigError(
                f"--index-order: {self.name} knows {', '.join(orders) or 'no index table'}, got {order!r}"
            )
        chosen = orders[order] if order else next(iter(orders.values())) if len(orders) == 1 else {}
        unknown = sorted(set(chosen.values()) - set(names))
        if unknown:
            raise ConfigError(f"recipe {self.name}: masks.index_orders names {unknown[0]!r}, which is not a class")
        return MaskRule(
            colours={entry.colour: i for i, entry in enumerate(self.classes) if entry.colour is not None},
            indices={value: names.index(name) for value, name in chosen.items()},
            ignore_colours=frozenset(self.masks.ignore_colours),
            ignore_indices=frozenset(self.masks.ignore_indices),
            min_area_px=self.masks.min_area_px,
            orders=tuple(orders),
            min_share=self.masks.min_share,
        )


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or anybody's by path.

    Raises:
        ConfigError: no such recipe, or a fault in it; names file and key.
    """
    path = find_preset("shards", name)
    return build(Recipe, {"name": path.stem, **load_yaml(path)}, place=f"{path}: ")


def schema_text(section: type[Section], indent: str = "") -> str:
    """The keys of a recipe as YAML with their defaults, each with its meaning.

    Args:
        section: the recipe, or a part of it.
        indent: before every line.
    """
    lines = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            lines.append(f"{indent}{name}:\n{schema_text(kind, indent + '  ')}")
            continue
        default = "" if field.is_required() else json.dumps(field.get_default(), default=list)
        entry = {"classes": ClassEntry}.get(name)
        lines.append(f"{indent}{name}: {default}  # {field.description}\n")
        lines.append(schema_text(entry, indent + "  #   ") if entry is not None else "")
    return "".join(lines)
