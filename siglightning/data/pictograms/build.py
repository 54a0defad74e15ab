"""Builds the embedded archive from registry packages: ``python -m siglightning.data.pictograms.build --work DIR``.

Needs the extra `data-build` (an SVG renderer), ``npm``, and a Debian system's ``apt-get`` and ``dpkg-deb``.
Building twice with the same library versions gives the same bytes.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from siglightning.data.pictograms import clipart, emoji, raster, sources
from siglightning.data.pictograms.archive import ARCHIVE, CONCEPTS, INDEX, PIXELS

_MIN_INK = 0.005  # share of pixels that are not nearly white; below it a picture shows nothing


@dataclass(frozen=True)
class Concept:
    """What a picture shows: one row of the table of concepts.

    Attributes:
        key: unique; code points for an emoji, ``clipart:TITLE`` for clip art.
        family: concepts of one family stay on one side of every split.
        category: one of nine groups.
        subcategory: a finer group, or empty.
        names: locale -> name; always has ``en``.
        keywords: locale -> keywords.
    """

    key: str
    family: str
    category: str
    subcategory: str
    names: dict[str, str]
    keywords: dict[str, list[str]]


@dataclass(frozen=True)
class Picture:
    """One drawing of a concept.

    Attributes:
        style: who drew it.
        concept: the concept's key.
        source: the file inside its package, for attribution and looking up.
        tags: English keywords of this picture.
        load: opens the drawing; ``None`` when it is unusable.
    """

    style: str
    concept: str
    source: str
    tags: tuple[str, ...]
    load: Callable[[], Image.Image | None]


def main(argv: Sequence[str] | None = None) -> None:
    """Fetches, checks, cleans, rasterises and writes."""
    parser = argparse.ArgumentParser(description="Build the embedded pictogram archive from its sources.")
    parser.add_argument("--work", type=Path, required=True, help="scratch directory outside the checkout")
    parser.add_argument("--out", type=Path, default=ARCHIVE, help="where the archive goes")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    roots = {source.name: sources.obtain(source, args.work) for source in sources.SOURCES}
    concepts, pictures = collect(roots)
    count = write_archive(concepts, pictures, args.out)
    size_mb = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    print(f"{count} pictures of {len(concepts)} concepts, {size_mb:.2f} MB, in {args.out}")


def collect(roots: dict[str, Path]) -> tuple[list[Concept], list[Picture]]:
    """Lists every concept and every drawing, in a fixed order.

    Args:
        roots: package name -> where it is unpacked.
    """
    noto = roots[sources.NOTO.name] / "package"
    characters = emoji.read_emoji(noto / "emoji.json", roots[sources.CLDR.name] / "package" / "annotations")
    debian = {kind: roots[f"openclipart-{kind}"] / "usr/share/openclipart" / kind for kind in ("svg", "png")}
    art = clipart.read_clipart(debian["svg"], debian["png"])
    concepts = [_emoji_concept(one) for one in characters] + _clipart_concepts(art, characters)
    pictures = [
        *_vendor_pictures("noto", noto / "img/google/64", characters),
        *_vendor_pictures("twemoji", roots[sources.TWEMOJI.name] / "package/img/twitter/64", characters),
        *_fluent_pictures(roots[sources.FLUENT.name] / "package/icons", characters),
        *(_clipart_picture(one) for one in art),
    ]
    return concepts, pictures


def write_archive(concepts: Sequence[Concept], pictures: Sequence[Picture], out: Path) -> int:
    """Writes the three files of an archive; drawings that show nothing are left out.

    Args:
        concepts: rows of the table of concepts; those without a usable picture stay, unreferenced.
        pictures: in the order in which they shall lie in the archive.
        out: directory, made if missing.

    Returns:
        How many pictures were written.
    """
    out.mkdir(parents=True, exist_ok=True)
    row_of = {concept.key: row for row, concept in enumerate(concepts)}
    rows: list[tuple[int, int, str, int, str, list[str]]] = []
    offset = 0
    with (out / PIXELS).open("wb") as file:
        for picture in pictures:
            image = picture.load()
            small = None if image is None else raster.on_white(image)
            if small is None or _ink(small) < _MIN_INK:
                continue
            data = raster.encode(small)
            file.write(data)
            rows.append((offset, len(data), picture.style, row_of[picture.concept], picture.source, list(picture.tags)))
            offset += len(data)
    _write_table(_index_table(rows), out / INDEX)
    _write_table(_concept_table(concepts), out / CONCEPTS)
    return len(rows)


def _ink(image: Image.Image) -> float:
    return float((np.asarray(image).min(axis=-1) < 245).mean())  # 245 of 255: WebP-proof white


def _index_table(rows: Sequence[tuple[int, int, str, int, str, list[str]]]) -> pa.Table:
    offset, length, style, concept, source, tags = zip(*rows, strict=True)
    columns = {
        "offset": pa.array(offset, pa.int64()),
        "length": pa.array(length, pa.int32()),
        "style": pa.array(style, pa.string()),
        "concept": pa.array(concept, pa.int32()),
        "source": pa.array(source, pa.string()),
        "tags": pa.array(tags, pa.list_(pa.string())),
    }
    return pa.table(columns)


def _concept_table(concepts: Sequence[Concept]) -> pa.Table:
    families = {family: number for number, family in enumerate(dict.fromkeys(c.family for c in concepts))}
    columns = {
        "key": pa.array([c.key for c in concepts], pa.string()),
        "family": pa.array([families[c.family] for c in concepts], pa.int32()),
        "category": pa.array([c.category for c in concepts], pa.string()),
        "subcategory": pa.array([c.subcategory for c in concepts], pa.string()),
    }
    for locale in emoji.LOCALES:
        columns[f"name_{locale}"] = pa.array([c.names.get(locale, "") for c in concepts], pa.string())
        columns[f"keywords_{locale}"] = pa.array([c.keywords.get(locale, []) for c in concepts], pa.list_(pa.string()))
    return pa.table(columns)


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", compression_level=19)


def _emoji_concept(one: emoji.Emoji) -> Concept:
    return Concept(one.key, one.family, one.category, one.subcategory, one.names, one.keywords)


def _clipart_concepts(art: Sequence[clipart.ClipArt], characters: Sequence[emoji.Emoji]) -> list[Concept]:
    """Clip art of one title is one concept; a title that is also an emoji's name joins that emoji's family."""
    family_of_name = {one.names["en"].lower(): one.family for one in characters}
    first: dict[str, clipart.ClipArt] = {}
    for one in art:
        first.setdefault(one.concept, one)
    return [
        Concept(
            f"clipart:{title}",
            family_of_name.get(title, f"clipart:{title}"),
            one.category,
            "",
            {"en": one.title},
            {"en": list(one.keywords)},
        )
        for title, one in first.items()
    ]


def _vendor_pictures(style: str, folder: Path, characters: Sequence[emoji.Emoji]) -> Iterator[Picture]:
    for one in characters:
        path = folder / one.image
        if path.exists():
            tags = tuple(one.keywords.get("en", []))
            yield Picture(style, one.key, one.image, tags, partial(raster.open_picture, path))


def _fluent_pictures(icons: Path, characters: Sequence[emoji.Emoji]) -> Iterator[Picture]:
    tags = {one.key: tuple(one.keywords.get("en", [])) for one in characters}
    for style, folder in emoji.FLUENT_STYLES.items():
        for key, path in emoji.fluent_files(icons / folder, list(characters)).items():
            source = f"{folder}/{path.name}"
            yield Picture(style, key, source, tags[key], partial(raster.rasterise_svg, path))


def _clipart_picture(one: clipart.ClipArt) -> Picture:
    return Picture("clipart", f"clipart:{one.concept}", one.path, one.keywords, partial(_open_clipart, one.png))


def _open_clipart(path: Path) -> Image.Image | None:
    image = raster.open_picture(path)
    return None if image is None else raster.crop_to_ink(image)


if __name__ == "__main__":
    main()
