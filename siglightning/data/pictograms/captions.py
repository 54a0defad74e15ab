"""What a picture is called: one caption drawn for each training sample, the English name in evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from siglightning.data.pictograms.archive import PictogramArchive

MODES = ("name", "name_and_keywords", "keywords", "category", "keyword", "template", "locale")
DRAWS_PER_CAPTION = 3
EvalCaptions = Literal["name", "description", "all"]


@dataclass(frozen=True)
class CaptionChoice:
    """How training captions are chosen.

    Attributes:
        weights: relative frequency of each mode: `name` ("dog face"), `name_and_keywords` ("dog face, pet, dog", one
            to all keywords), `keywords` ("pet, dog", the same without the name), `category` ("animal mammal" or
            "animals and nature"), `keyword` ("pet"), `template` ("an emoji of dog face"), `locale` ("Hundegesicht").
        templates: sentences with ``{}`` in the place of the name.
        locales: languages of the mode `locale`; a concept that lacks them all keeps its English name.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"name": 1.0})
    templates: Sequence[str] = ("an emoji of {}", "a drawing of {}", "{}, a pictogram")
    locales: Sequence[str] = ("de", "fr", "es", "it", "pt", "nl", "ru", "ja", "ko", "zh", "ar")

    def __post_init__(self) -> None:
        unknown = set(self.weights) - set(MODES)
        if unknown or not sum(self.weights.values()) > 0 or min(self.weights.values()) < 0:
            raise ValueError(
                f"`captions.weights` must give frequencies of at least 0, not all 0, to some of {list(MODES)}, "
                f"got {dict(self.weights)}."
            )
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ValueError(f"`captions.templates` must each hold one '{{}}', got {list(self.templates)}.")

    def shares(self) -> list[float]:
        """The weights of all `MODES`, in their order, scaled to a sum of 1."""
        total = sum(self.weights.values())
        return [self.weights.get(mode, 0.0) / total for mode in MODES]


class Captions:
    """The captions of an archive's pictures.

    Args:
        archive: where names and keywords are.
        choice: how training captions are chosen.

    Raises:
        ValueError: the archive has no names in one of the languages.
    """

    def __init__(self, archive: PictogramArchive, choice: CaptionChoice) -> None:
        self.choice = choice
        self._concept: list[int] = archive.pictures["concept"].to_pylist()
        self._keywords: list[list[str]] = archive.pictures["tags"].to_pylist()
        self._names: list[str] = archive.concepts["name_en"].to_pylist()
        self._kinds = _kinds(archive)
        self._foreign: list[list[str]] = []
        self._subject_of: dict[str, str] = {}
        self._thresholds = np.cumsum(choice.shares())
        if choice.weights.get("locale", 0.0) > 0:
            self._foreign = _foreign_names(archive, choice.locales)
            english = {word.casefold() for words in (self._names, *self._keywords) for word in words}
            for name, foreign in zip(self._names, self._foreign, strict=True):
                for word in map(str.casefold, foreign):
                    # A word that is English, too ("pain"), keeps itself as its subject, as the keyword does.
                    self._subject_of.setdefault(word, word if word in english else name)

    def name(self, row: int) -> str:
        """The English name of a picture."""
        return self._names[self._concept[row]]

    def for_evaluation(self, row: int, kind: EvalCaptions) -> list[str]:
        """The captions of a picture in evaluation.

        Args:
            row: the picture.
            kind: `name` (one caption), `description` (one: name and all keywords, "dog face, pet, dog"), or `all`
                (name and keywords as so many captions).
        """
        words = list(dict.fromkeys([self.name(row), *self._keywords[row]]))
        return words[:1] if kind == "name" else [", ".join(words)] if kind == "description" else words

    def draw(self, row: int, numbers: NDArray[np.float64]) -> tuple[str, str]:
        """One caption for training, and its subject: captions of one subject match each other's pictures.

        Whatever holds the name, in any language, has the English name as its subject, so that two drawings of a dog
        are not negatives for being called "dog" and "Hund". A keyword or a category is its own subject, since many
        concepts share it, and so is a list of keywords; so equal captions always have equal subjects.

        Args:
            row: the picture.
            numbers: float64 ``[DRAWS_PER_CAPTION]`` in ``[0, 1)``, which decide.
        """
        mode = MODES[int(np.searchsorted(self._thresholds, numbers[0], side="right").clip(max=len(MODES) - 1))]
        name, keywords = self.name(row), self._keywords[row]
        if mode == "template":
            return _pick(self.choice.templates, numbers[1]).replace("{}", name), name
        if mode == "locale":
            caption = _pick(self._foreign[self._concept[row]] or [name], numbers[1])
            return caption, self._subject_of.get(caption.casefold(), caption)
        if mode == "keyword":
            caption = _pick(keywords or [name], numbers[1])
            return caption, caption
        if mode == "category":
            kind = _pick(self._kinds[self._concept[row]] or [name], numbers[1])
            return kind, kind
        if mode in ("keywords", "name_and_keywords") and keywords:
            first, count = int(numbers[1] * len(keywords)), 1 + int(numbers[2] * len(keywords))
            listed = ", ".join((keywords + keywords)[first : first + count])
            return (listed, listed) if mode == "keywords" else (f"{name}, {listed}", name)
        return name, name


def _pick(options: Sequence[str], number: float) -> str:
    return options[int(number * len(options))]


def category_words(label: str) -> str:
    """A category's label as words: ``Animals & Nature`` is "animals and nature", ``animal-mammal`` "animal mammal"."""
    return label.replace("&", "and").replace("-", " ").replace("/", " ").lower()


def _kinds(archive: PictogramArchive) -> list[list[str]]:
    """Subcategory and category of every concept, as words."""
    labels = zip(archive.concepts["subcategory"].to_pylist(), archive.concepts["category"].to_pylist(), strict=True)
    return [[category_words(label) for label in pair if label] for pair in labels]


def _foreign_names(archive: PictogramArchive, locales: Sequence[str]) -> list[list[str]]:
    known = [column.removeprefix("name_") for column in archive.concepts.column_names if column.startswith("name_")]
    if not locales or set(locales) - set(known):
        raise ValueError(f"`captions.locales` must be some of {known}, got {list(locales)}.")
    columns = [cast(list[str], archive.concepts[f"name_{locale}"].to_pylist()) for locale in locales]
    return [[name for name in names if name] for names in zip(*columns, strict=True)]
