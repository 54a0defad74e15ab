"""The embedded pictograms as a data module."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from siglightning.batch import InputSpec
from siglightning.data.base import BaseDataModule
from siglightning.data.dataset import SampleDataset
from siglightning.data.pictograms.archive import PictogramArchive
from siglightning.data.pictograms.captions import CaptionChoice, Captions, EvalCaptions, category_words
from siglightning.data.pictograms.dataset import PictogramDataset, TrainingPictograms
from siglightning.data.pictograms.splits import Splits, split
from siglightning.data.transforms import Augmentation

_LETTER = re.compile(r"[^\W\d_]")  # keywords such as "143" or "*" are no classes


class PictogramDataModule(BaseDataModule):
    """9,474 drawings of 4,125 concepts, with names in twelve languages; nothing to download.

    Sources: Noto Emoji, Twemoji, Fluent UI Emoji (colour and flat), cleaned Open Clip Art; CLDR names and keywords.
    Test sets: `seen_concepts` (trained on in other styles) and `unseen_concepts` (never seen in any style), both in
    the test styles. Validation: unseen concepts and clip art in the training styles.

    Args:
        root: a folder that holds another archive in the same format; ``None`` is the embedded one.
        train_styles: styles to train and validate on.
        test_styles: styles to test on.
        split_seed: of the division of the concepts; leave it alone to compare runs.
        flags: train on flags too. Evaluation never holds any.
        captions: how training captions are chosen.
        eval_captions: caption of an evaluated picture: its `name`; its `description`, the name with all keywords, which
            tells something where a name was never read in training; or `all`, name and keywords as several captions.
        augmentation: how training pictures vary.
        targets: what `label` is: `caption` and `category` give the category's number, `tags` a multi-hot vector.
        min_tag_count: a tag is a class if at least so many training pictures bear it.
        others: of :class:`~siglightning.data.base.BaseDataModule`.
    """

    def __init__(
        self,
        root: str | None = None,
        train_styles: Sequence[str] = ("noto", "fluent_color", "fluent_flat", "clipart"),
        test_styles: Sequence[str] = ("twemoji",),
        split_seed: int = 0,
        flags: bool = False,
        captions: CaptionChoice | None = None,
        eval_captions: EvalCaptions = "name",
        augmentation: Augmentation | None = None,
        targets: Literal["caption", "category", "tags"] = "caption",
        min_tag_count: int = 20,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.root = root
        self.train_styles = list(train_styles)
        self.test_styles = list(test_styles)
        self.split_seed = split_seed
        self.flags = flags
        self.captions = captions or CaptionChoice()
        self.eval_captions: EvalCaptions = eval_captions
        self.augmentation = augmentation or Augmentation()
        self.targets = targets
        self.min_tag_count = min_tag_count
        self.prompt_templates = ["{}", "an emoji of {}", "a drawing of {}"]

    def build(self, spec: InputSpec) -> None:
        """Opens the archive, divides it and names the classes.

        Raises:
            ValueError: the folder, a style or a language is not there.
        """
        archive = PictogramArchive.open(self.root)
        parts = split(archive, self.train_styles, self.test_styles, self.split_seed, self.flags)
        captions = Captions(archive, self.captions)
        labels = self._labels(archive, parts)
        size = spec.image_size

        def evaluation_set(rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> SampleDataset:
            return PictogramDataset(archive, rows, captions, labels, size, self.eval_captions, spec.resizing)

        self.train_set = TrainingPictograms(archive, parts.train, captions, labels, size, self.augmentation, self.seed)
        self.val_set = evaluation_set(parts.val)
        self.test_sets = {
            "seen_concepts": evaluation_set(parts.seen_concepts),
            "unseen_concepts": evaluation_set(parts.unseen_concepts),
        }
        self._fingerprint = self._identify(archive, parts, size)

    @property
    def fingerprint(self) -> str:
        """Identity of archive, training rows, captions, augmentation and size, 16 hexadecimal digits."""
        return self._fingerprint

    def _labels(self, archive: PictogramArchive, parts: Splits) -> Tensor:
        if self.targets == "tags":
            return self._tag_labels(archive, parts)
        of_concept = np.asarray(archive.concepts["category"].to_pylist())
        category = of_concept[archive.pictures["concept"].to_numpy()]
        used = np.concatenate([parts.train, parts.val, parts.seen_concepts, parts.unseen_concepts])
        names = np.unique(category[used])
        self.class_names = [category_words(str(name)) for name in names]
        # Pictures that no split uses (flags, by default) may lack a class; nobody asks for theirs.
        return torch.from_numpy(np.searchsorted(names, category).clip(max=len(names) - 1))

    def _tag_labels(self, archive: PictogramArchive, parts: Splits) -> Tensor:
        tags: list[list[str]] = archive.pictures["tags"].to_pylist()
        counts = Counter(tag for row in parts.train.tolist() for tag in set(tags[row]) if _LETTER.search(tag))
        self.class_names = sorted(tag for tag, count in counts.items() if count >= self.min_tag_count)
        if not self.class_names:
            raise ValueError(
                f"No tag has {self.min_tag_count} training pictures (the commonest has {max(counts.values())}). "
                "Lower `data.init_args.min_tag_count`."
            )
        number = {tag: column for column, tag in enumerate(self.class_names)}
        labels = torch.zeros(len(tags), len(number))
        for row, words in enumerate(tags):
            labels[row, [number[word] for word in words if word in number]] = 1.0
        return labels

    def _identify(self, archive: PictogramArchive, parts: Splits, size: int) -> str:
        words = {**asdict(self.captions), "weights": self.captions.shares()}
        recipe = [words, asdict(self.augmentation), self.targets, self.min_tag_count, size]
        settings = json.dumps([archive.fingerprint, *recipe])
        return hashlib.sha256(settings.encode() + parts.train.tobytes()).hexdigest()[:16]
