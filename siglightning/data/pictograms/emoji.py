"""Emoji: which there are, what they are called in many languages, and which belong to one family.

A *concept* is a base emoji without skin tones. A *family* joins the gender, age-of-adult and direction variants of
one concept ("man cook", "woman cook", "cook"), so that a split by family never puts near-copies on both sides.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOCALES = ("en", "de", "fr", "es", "it", "pt", "nl", "ru", "ja", "ko", "zh", "ar")
"""The locales that name the same 1,585 emoji in full."""

FLUENT_STYLES = {"fluent_color": "modern", "fluent_flat": "flat"}
"""Our style names and the folders of the Fluent package; its third, black lines on white, costs twice the bytes."""

_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

# Fluent files are named after Microsoft's own titles; these are the ones that no Unicode name turns into.
_FLUENT_ALIASES = {
    "hash": "keycap-hashtag",
    "keycap_star": "keycap-asterisk",
    "keycap_ten": "keycap-10",
    "phoenix": "phoenix-bird",
    "black_bird": "blackbird",
    "small_red_triangle": "red-triangle",
    "dizzy_face": "knocked-out-face",
    "wrestlers": "person-wrestling",
    "stuffed_flatbread": "stuffedbread",
    "superhero": "person-superhero",
    "supervillain": "person-supervillain",
    "women-with-bunny-ears-partying": "woman-with-bunny-ears",
    "men-with-bunny-ears-partying": "man-with-bunny-ears",
    "blond-haired-woman": "woman-blonde-hair",
    "blond-haired-man": "man-blonde-hair",
    "person_with_blond_hair": "person-blonde-hair",
    "deaf_woman": "woman-deaf",
    "deaf_man": "man-deaf",
    "deaf_person": "person-deaf",
    "mage": "person-mage",
    "fairy": "person-fairy",
    "vampire": "person-vampire",
    "mermaid": "woman-merpeople",
    "merman": "man-merpeople",
    "merperson": "person-merpeople",
    "elf": "person-elf",
    "genie": "person-genie",
    "zombie": "person-zombie",
}

_PERSON, _CHILD, _ELDER = "\U0001f9d1", "\U0001f9d2", "\U0001f9d3"
_SAME_ROLE = {
    "\U0001f468": _PERSON,  # man
    "\U0001f469": _PERSON,  # woman
    "\U0001f466": _CHILD,  # boy
    "\U0001f467": _CHILD,  # girl
    "\U0001f474": _ELDER,  # old man
    "\U0001f475": _ELDER,  # old woman
    "\U0001f934": "\U0001fac5",  # prince -> person with crown
    "\U0001f478": "\U0001fac5",  # princess
    "\U0001f936": "\U0001f385",  # Mrs. Claus -> Santa Claus
    "\U0001f57a": "\U0001f483",  # man dancing -> woman dancing
    "\U0001f930": "\U0001fac4",  # pregnant woman -> pregnant person
    "\U0001fac3": "\U0001fac4",  # pregnant man
    "\U0001f46c": "\U0001f46b",  # men holding hands -> woman and man holding hands
    "\U0001f46d": "\U0001f46b",  # women holding hands
}
_COUPLES = {  # joined sequences -> the single emoji of the same scene
    "\U0001f9d1\u200d\U0001f91d\u200d\U0001f9d1": "\U0001f46b",
    "\U0001f9d1\u200d\u2764\u200d\U0001f9d1": "\U0001f491",
    "\U0001f9d1\u200d\u2764\u200d\U0001f48b\u200d\U0001f9d1": "\U0001f48f",
    "\U0001f9d1\u200d\U0001f384": "\U0001f385",  # mx claus
}
_FAMILY = "\U0001f46a"
_VARIANT_MARKS = re.compile("\u200d[\u2640\u2642\u27a1]|\ufe0f")  # gender signs, facing right, emoji presentation


@dataclass(frozen=True)
class Emoji:
    """One base emoji.

    Attributes:
        key: lower-case code points joined by ``-``, the key of the Unicode tables.
        text: the characters themselves.
        family: the text of the concept that its variants share.
        short_name: the vendors' nickname, unique.
        image: file name in the vendors' folders.
        category: one of nine groups, e.g. ``Animals & Nature``.
        subcategory: one of some hundred, e.g. ``animal-mammal``.
        names: locale -> name; always has ``en``.
        keywords: locale -> keywords, possibly empty.
    """

    key: str
    text: str
    family: str
    short_name: str
    image: str
    category: str
    subcategory: str
    names: dict[str, str] = field(default_factory=dict)
    keywords: dict[str, list[str]] = field(default_factory=dict)


def read_emoji(table: Path, annotations: Path) -> list[Emoji]:
    """Reads the base emoji in the order of their code points, with names and keywords in ``LOCALES``.

    The five swatches of skin tones (category ``Component``) are left out: they depict nothing.

    Args:
        table: ``emoji.json`` of an emoji-datasource package.
        annotations: the folder with one directory a locale of the CLDR package.
    """
    words = {locale: _read_annotations(annotations, locale) for locale in LOCALES}
    rows = [row for row in json.loads(table.read_text("utf-8")) if row["category"] != "Component"]
    return [_emoji(row, words) for row in sorted(rows, key=lambda row: str(row["unified"]))]


def family_of(text: str) -> str:
    """The concept that gender, direction and family-member variants of an emoji share.

    Args:
        text: the emoji's characters, without skin tones.
    """
    plain = "".join(_SAME_ROLE.get(char, char) for char in _VARIANT_MARKS.sub("", text))
    members = set(plain.split("\u200d"))
    if members <= {_PERSON, _CHILD} and len(plain) > 1:
        return _FAMILY
    return _COUPLES.get(plain, plain)


def fluent_files(folder: Path, emoji: list[Emoji]) -> dict[str, Path]:
    """Matches Fluent drawings to emoji by name, one drawing for an emoji at most.

    Args:
        folder: SVG files such as ``dog-face.svg`` or, with skin tones, ``cook-default.svg``.
        emoji: what to look for.

    Returns:
        Emoji key -> file.
    """
    stems = {path.stem for path in folder.glob("*.svg")}
    found = {}
    for one in emoji:
        names = (_FLUENT_ALIASES.get(one.short_name, ""), slug(one.names["en"]), slug(one.short_name))
        stem = next(_drawings(names, stems), None)
        if stem is not None:
            found[one.key] = folder / f"{stem}.svg"
    return found


def slug(name: str) -> str:
    """``"man's shoe"`` -> ``"mans-shoe"``: lower-case ASCII words joined by hyphens."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", ascii_name.replace("&", "and").replace("'", "")).strip("-")


def _drawings(names: tuple[str, ...], stems: set[str]) -> Iterator[str]:
    for name in names:
        if f"{name}-default" in stems:
            yield f"{name}-default"
        elif name in stems and not _is_tone_of_another(name, stems):
            yield name


def _is_tone_of_another(stem: str, stems: set[str]) -> bool:
    return any(stem.endswith(f"-{tone}") and f"{stem[: -len(tone) - 1]}-default" in stems for tone in _TONES)


def _read_annotations(folder: Path, locale: str) -> dict[str, dict[str, list[str]]]:
    content = json.loads((folder / locale / "annotations.json").read_text("utf-8"))
    words: dict[str, dict[str, list[str]]] = content["annotations"]["annotations"]
    return words


def _emoji(row: dict[str, Any], words: dict[str, dict[str, dict[str, list[str]]]]) -> Emoji:
    text = "".join(chr(int(point, 16)) for point in row["unified"].split("-")).replace("\ufe0f", "")
    entries = {locale: words[locale][text] for locale in LOCALES if text in words[locale]}
    names = {locale: entry["tts"][0] for locale, entry in entries.items() if entry.get("tts")}
    if "en" not in names:
        names["en"] = _english_name(row)
    return Emoji(
        key=row["unified"].lower(),
        text=text,
        family=family_of(text),
        short_name=row["short_name"],
        image=row["image"],
        category=row["category"],
        subcategory=row["subcategory"],
        names=names,
        keywords={locale: entry.get("default", []) for locale, entry in entries.items()},
    )


def _english_name(row: dict[str, Any]) -> str:
    """A name for what the Unicode tables leave out: flags and some joined emoji."""
    name: str = row["name"] or row["short_name"].replace("_", " ").replace("-", " ")
    if row["category"] == "Flags" and name.endswith(" Flag"):
        return f"flag: {name.removesuffix(' Flag')}"
    return name.lower()
