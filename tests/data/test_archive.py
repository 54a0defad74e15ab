"""The embedded archive, the rules that made it, and the script that builds it."""

import hashlib
import io
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from siglightning.data import PictogramArchive
from siglightning.data.pictograms import archive as archive_module
from siglightning.data.pictograms import build, clipart, emoji, raster, sources

ROOT = archive_module.ARCHIVE


@pytest.fixture(scope="module")
def archive():
    return PictogramArchive.open()


def test_pictures_equal_an_independent_reader(archive):
    table = pq.read_table(ROOT / "pictures.parquet").to_pylist()
    pixels = (ROOT / "pictures.bin").read_bytes()
    assert len(archive) == len(table) == 9474
    for row in range(0, len(table), 97):
        start, length = table[row]["offset"], table[row]["length"]
        expected = np.asarray(Image.open(io.BytesIO(pixels[start : start + length])).convert("RGB"))
        assert expected.shape == (64, 64, 3)
        assert np.array_equal(archive.read_image(row).permute(1, 2, 0).numpy(), expected)


def test_the_index_covers_the_pixels_without_gaps(archive):
    offset, length = archive.pictures["offset"].to_numpy(), archive.pictures["length"].to_numpy()
    assert offset[0] == 0
    assert np.array_equal(offset[1:], (offset + length)[:-1])
    assert offset[-1] + length[-1] == (ROOT / "pictures.bin").stat().st_size
    assert sum(path.stat().st_size for path in ROOT.iterdir()) < 8_000_000


def test_a_well_known_emoji_has_its_names_and_five_or_more_drawings(archive):
    dog = archive.concepts["key"].to_pylist().index("1f436")
    concept = archive.concepts.slice(dog, 1).to_pylist()[0]
    assert concept["category"] == "Animals & Nature"
    assert [concept[f"name_{locale}"] for locale in ("en", "de", "fr", "zh")] == [
        "dog face",
        "Hundegesicht",
        "tête de chien",
        "狗脸",
    ]
    assert "pet" in concept["keywords_en"]
    rows = [i for i, number in enumerate(archive.pictures["concept"].to_pylist()) if number == dog]
    assert {archive.pictures["style"][row].as_py() for row in rows} == {
        "noto",
        "twemoji",
        "fluent_color",
        "fluent_flat",
    }


def test_drawings_of_one_emoji_resemble_each_other_more_than_others(archive):
    """A shifted index or a wrong match of names would break this: colours of 100 emoji in two styles."""
    concept, style = archive.pictures["concept"].to_numpy(), np.array(archive.pictures["style"].to_pylist())
    both = np.intersect1d(concept[style == "fluent_color"], concept[style == "fluent_flat"])[::15][:100]
    means = {}
    for name in ("fluent_color", "fluent_flat"):
        rows = [int(np.flatnonzero((concept == number) & (style == name))[0]) for number in both]
        pictures = [archive.read_image(row).float().view(3, 8, 8, 8, 8).mean(dim=(2, 4)).flatten() for row in rows]
        means[name] = np.stack(pictures)
    distance = ((means["fluent_color"][:, None] - means["fluent_flat"][None]) ** 2).sum(axis=-1)
    assert (distance.argmin(axis=1) == np.arange(len(both))).mean() > 0.6  # chance: 0.01


@pytest.mark.parametrize("name", ["pictures.bin", "pictures.parquet", "concepts.parquet"])
def test_a_missing_or_empty_file_is_named(tmp_path, name):
    for other in ("pictures.bin", "pictures.parquet", "concepts.parquet"):
        (tmp_path / other).write_bytes(b"x")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} is empty.*data\.init_args\.root"):
        PictogramArchive.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        PictogramArchive.open(tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        PictogramArchive.open(tmp_path / "nowhere")


def real_drawings(archive, rows):
    images = [Image.fromarray(archive.read_image(row).permute(1, 2, 0).numpy()) for row in rows]
    concepts = [build.Concept(f"k{row}", f"f{row // 2}", "Objects", "", {"en": f"n{row}"}, {}) for row in rows]
    pictures = [
        build.Picture("s", f"k{row}", str(row), ("t",), image.copy) for row, image in zip(rows, images, strict=True)
    ]
    return concepts, pictures


def test_building_twice_gives_the_same_bytes_and_reads_back(archive, tmp_path):
    concepts, pictures = real_drawings(archive, [5, 6, 2000, 9000])
    blank = build.Picture("s", "k5", "blank", (), partial(Image.new, "RGB", (64, 64), "white"))
    unusable = build.Picture("s", "k5", "unusable", (), lambda: None)
    for name in ("first", "second"):
        assert build.write_archive(concepts, [*pictures, blank, unusable], tmp_path / name) == 4
    for file in ("pictures.bin", "pictures.parquet", "concepts.parquet"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    copy = PictogramArchive.open(tmp_path / "first")
    assert copy.pictures["source"].to_pylist() == ["5", "6", "2000", "9000"]
    assert copy.concepts["family"].to_pylist() == [0, 1, 2, 3]
    for row, original in enumerate([5, 6, 2000, 9000]):
        error = (copy.read_image(row).float() - archive.read_image(original).float()).abs().mean()
        assert error < 4  # of 255: compressed twice


def test_a_changed_source_is_refused(tmp_path):
    (tmp_path / "source.tgz").write_bytes(b"genuine")
    genuine = hashlib.sha256(b"genuine").hexdigest()
    sources.check(tmp_path / "source.tgz", genuine)
    (tmp_path / "source.tgz").write_bytes(b"tampered")
    with pytest.raises(ValueError, match=f"must have SHA-256 {genuine}, got [0-9a-f]{{64}}"):
        sources.check(tmp_path / "source.tgz", genuine)


@pytest.mark.parametrize(
    "variants",
    [
        "🧑‍🍳 👨‍🍳 👩‍🍳",
        "🏃 🏃‍♀️ 🏃‍♂️‍➡️ 🏃‍➡️",
        "🤴 👸 🫅",
        "👪 👨‍👩‍👧 👩‍👦 🧑‍🧑‍🧒",
        "🧑‍🤝‍🧑 👫 👬 👭",
        "💏 👩‍❤️‍💋‍👨",
        "👨‍🦰 👩‍🦰 🧑‍🦰",
        "🎅 🤶 🧑‍🎄",
    ],
)
def test_variants_of_one_concept_are_one_family(variants):
    families = {emoji.family_of(text.replace("\ufe0f", "")) for text in variants.split()}
    assert len(families) == 1


def test_different_concepts_are_different_families():
    texts = ["🧑", "🧒", "🧓", "🧑‍🍳", "🧑‍🎓", "🏃", "🚶", "👪", "💏", "💑", "🐕", "🐶", "1⃣", "🧑‍🦰", "🧑‍🦱"]
    assert len({emoji.family_of(text) for text in texts}) == len(texts)


def test_drawings_are_fitted_on_white():
    wide = Image.new("RGBA", (200, 100), (255, 0, 0, 255))
    fitted = np.asarray(raster.on_white(wide))
    assert fitted.shape == (64, 64, 3)
    assert (fitted[16:48] == [255, 0, 0]).all()
    assert (fitted[:16] == 255).all()
    assert (fitted[48:] == 255).all()
    page = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    page.paste((0, 0, 255, 255), (10, 20, 30, 60))
    assert raster.crop_to_ink(page).size == (20, 40)


def clipart_tree(root, entries):
    """A small tree in the layout of the two Debian packages; entries: path -> (title, licence, keywords, colour)."""
    for path, (title, licence, keywords, colour) in entries.items():
        svg, png = root / "svg" / f"{path}.svg", root / "png" / f"{path}.png"
        svg.parent.mkdir(parents=True, exist_ok=True)
        png.parent.mkdir(parents=True, exist_ok=True)
        items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
        svg.write_text(
            '<svg xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/" '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><rdf:RDF><cc:Work>'
            f"<dc:title>{title}</dc:title><dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>"
            f'<cc:license rdf:resource="http://web.resource.org/cc/{licence}"/></cc:Work></rdf:RDF></metadata></svg>'
        )
        Image.new("RGB", (8, 8), colour).save(png)


def test_clip_art_is_cleaned(tmp_path):
    free = "PublicDomain"
    series = {f"tools/saw_{i}": ("Saw", free, [], (i, i, i)) for i in range(7)}
    kept = {
        "animals/frog_01": ("Green_frog 02", free, ["Frog", "clip art", "frog", "wet_animal"], "green"),
        "signs_and_symbols/flags/x": ("Utopia", free, [], "blue"),
        "tools/axe": ("Axe", free, [], "gray"),
    }
    dropped = {
        "animals/z_copy": ("Another frog", free, [], "green"),  # byte-equal picture
        "animals/gpl": ("Toad", "GPL", [], "red"),
        "animals/by": ("Clipart by someone", free, [], "pink"),
        "animals/mail": ("me@example.org", free, [], "cyan"),
        "animals/number": ("12", free, [], "brown"),
        "computer/icons/lemon/a": ("Arrow", free, [], "yellow"),
        "office/dark-theme/b": ("Pen", free, [], "black"),
    }
    clipart_tree(tmp_path, kept | dropped | series)
    found = {one.path: one for one in clipart.read_clipart(tmp_path / "svg", tmp_path / "png")}
    assert found.keys() == kept.keys()
    frog = found["animals/frog_01"]
    assert (frog.title, frog.concept, frog.keywords) == ("Green frog", "green frog", ("frog", "wet animal"))
    assert [one.category for one in found.values()] == ["Animals & Nature", "Flags", "Objects"]
