"""ImageNet's validation set and the sets that test the same classes: v2, ReaL, A, R, Sketch and ObjectNet."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from siglightning.data.images import ImageLimits, decode
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.source import RawSample
from siglightning.data.sources.files import FilesSource, folders_in, pictures_below
from siglightning.data.sources.layout import tree
from siglightning.data.sources.wordnet import imagenet_classes, names_of_numbers
from siglightning.evaluation.prompts import Templates

TestName = Literal[
    "imagenet", "imagenet_real", "imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch", "objectnet"
]

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_BORDER = 2  # pixels of red that ObjectNet's makers drew around every picture, to be cut away before it is shown


class ObjectNetSource(FilesSource):
    """ObjectNet's pictures, without their red border.

    Args:
        root: folder with ``images/FOLDER`` and ``mappings``.
        shared: only the classes that ImageNet has, too (113 of 313).
        limits: of the size of pictures.

    Raises:
        ValueError: a file of its own is missing or says something else than the folders do.
    """

    def __init__(self, root: Path, shared: bool = True, limits: ImageLimits | None = None) -> None:
        names = _json(root / "mappings" / "folder_to_objectnet_label.json")
        if shared:
            known = _json(root / "mappings" / "objectnet_to_imagenet_1k.json")
            names = {folder: name for folder, name in names.items() if name in known}
        folders = sorted(names)
        images = root / "images"
        there = set(folders_in(images)) if images.is_dir() else set()
        present = [folder for folder in folders if folder in there]
        if not present:
            raise ValueError(
                f"Expected ObjectNet's folders ({', '.join(folders[:3])} ...) in {images}, found none of them. Found: "
                f"{tree(root)}"
            )
        files, labels = [], []
        for folder in present:
            own = list(pictures_below(images / folder, f"{folder}/"))
            files += own
            labels += [folders.index(folder)] * len(own)
        super().__init__(images, files, np.array(labels), [names[folder].lower() for folder in folders])
        self.limits = limits

    @override
    def read(self, index: int) -> RawSample:
        raw = super().read(index)
        assert isinstance(raw.image, bytes)
        picture = decode(raw.image, self.limits)
        height, width = (side - _BORDER for side in picture.shape[1:])
        return RawSample(picture[:, _BORDER:height, _BORDER:width], labels=raw.labels)


class ImageNetTestDataModule(MapStyleDataModule):
    """A set to test on whose classes are ImageNet's, or some of them; nothing is trained on it.

    ================== ===================================================== ====================================
    name               in ``root``, or in the one folder that it holds       pictures
    ================== ===================================================== ====================================
    imagenet           ``WNID/*``, or ``val/WNID/*``                         50,000 of 1,000 classes
    imagenet_real      ``ILSVRC2012_val_*.JPEG``, in any folders             46,837, several labels each, of 50,000
    imagenet_v2        ``0`` ... ``999``, or ``WNID``                        10,000 of 1,000 classes
    imagenet_a         ``WNID/*``                                            7,500 of 200 classes
    imagenet_r         ``WNID/*``                                            30,000 of 200 classes
    imagenet_sketch    ``WNID/*``                                            50,889 of 1,000 classes
    objectnet          ``images/FOLDER/*`` and ``mappings/*.json``           18,574 of the 113 shared classes
    ================== ===================================================== ====================================

    Names of classes are open_clip's, by WordNet number; ObjectNet's are its own, read from its files. Labels of ReaL
    are timm's; the pictures to which its annotators gave no label are left out (Beyer et al. 2020, arXiv:2006.07159).
    A and R are told apart among the classes that are there. The set is called like its name.

    Args:
        name: of the set.
        root: the folder.
        templates: see :class:`MapStyleDataModule`.
        shared_classes: of ObjectNet only the classes that ImageNet has.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        name: TestName,
        root: str,
        templates: Templates = "imagenet",
        shared_classes: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(templates=templates, **others)
        if name not in _OPEN and name != "objectnet":
            raise ValueError(f"`data.init_args.name` must be one of {', '.join(_OPEN)}, objectnet, got {name!r}.")
        self.set_name, self.root, self.shared_classes = name, root, shared_classes

    @override
    def setup(self, stage: str | None = None) -> None:
        if stage == "fit":
            raise ValueError(
                f"{self.set_name} is for tests alone. Train on other data, and give this among their `zeroshot_sets`."
            )
        super().setup(stage)

    @override
    def open_parts(self) -> Parts:
        root = _inner(Path(self.root))
        if self.set_name == "objectnet":
            source: FilesSource = ObjectNetSource(root, self.shared_classes, self.limits)
        else:
            source = _OPEN[self.set_name](root)
        return Parts(source, source, {self.set_name: source})


def _by_wordnet(root: Path, whole: bool = True) -> FilesSource:
    """Folders with WordNet numbers for names; all of ImageNet's classes, or those that are there."""
    there = folders_in(root)
    numbers = sorted(imagenet_classes()) if whole else there
    names = names_of_numbers(there, str(root))
    files, labels = [], []
    place = {number: row for row, number in enumerate(numbers)}
    for folder in names:
        own = list(pictures_below(root / folder, f"{folder}/"))
        files += own
        labels += [place[folder]] * len(own)
    known = imagenet_classes()
    return FilesSource(root, files, np.array(labels, dtype=np.int64), [known[number] for number in numbers])


def _validation(root: Path) -> FilesSource:
    return _by_wordnet(root / "val" if (root / "val").is_dir() else root)


def _v2(root: Path) -> FilesSource:
    """Folders are numbers of classes, whose order as text (0, 1, 10, 100 ...) is not theirs."""
    there = folders_in(root)
    if not all(name.isdigit() for name in there):
        return _by_wordnet(root)
    strange = [name for name in there if int(name) > 999]
    if strange or not there:
        raise ValueError(
            f"Expected folders 0 ... 999 in {root}, the numbers of ImageNet's classes, got "
            f"{', '.join(strange[:3]) or 'none'}. Found: {tree(root)}"
        )
    files = [(path, int(name)) for name in sorted(there, key=int) for path in pictures_below(root / name, f"{name}/")]
    labels = np.array([label for _, label in files], dtype=np.int64)
    return FilesSource(root, [path for path, _ in files], labels, list(imagenet_classes().values()))


def _real(root: Path) -> FilesSource:
    """Labels go by the number in a picture's name, so that its folder does not matter."""
    from timm.data import RealLabelsImagenet

    numbered = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    known: dict[str, list[int]] = RealLabelsImagenet(numbered).real_labels
    found: list[tuple[str, list[int]]] = []
    for path in pictures_below(root):
        match = _VALIDATION.fullmatch(path.rpartition("/")[2])
        labels = known.get(f"ILSVRC2012_val_{match[1]}.JPEG") if match else None
        if labels:
            found.append((path, labels))
    if not found:
        raise ValueError(
            f"Expected pictures such as ILSVRC2012_val_00000001.JPEG in {root} or below it, found none with a label of "
            f"ReaL. Found: {tree(root)}"
        )
    most = max(len(labels) for _, labels in found)
    table = np.array([labels + [-1] * (most - len(labels)) for _, labels in found])
    # Two columns at least: labels of one column would mean one label a picture.
    table = np.pad(table, ((0, 0), (0, max(0, 2 - most))), constant_values=-1)
    return FilesSource(root, [path for path, _ in found], table, list(imagenet_classes().values()))


_OPEN: dict[str, Callable[[Path], FilesSource]] = {
    "imagenet": _validation,
    "imagenet_real": _real,
    "imagenet_v2": _v2,
    "imagenet_a": lambda root: _by_wordnet(root, whole=False),
    "imagenet_r": lambda root: _by_wordnet(root, whole=False),
    "imagenet_sketch": _by_wordnet,
}


def _inner(root: Path) -> Path:
    """The folder, or the one folder that an archive has wrapped around all, as ``imagenet-a`` or ``objectnet-1.0``."""
    if not root.is_dir():
        raise ValueError(f"Expected a data set in {root}, which does not exist. Check `data.init_args.root`.")
    inside = folders_in(root)
    if len(inside) == 1 and inside[0] != "val" and any(folders_in(root / inside[0])):
        return _inner(root / inside[0])
    return root


def _json(path: Path) -> dict[str, str]:
    """A file of ObjectNet's own that maps strings to strings."""
    if not path.is_file():
        raise ValueError(f"Expected {path}, which belongs to ObjectNet and names its classes; it does not exist.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f"Expected names of classes in {path}, as a JSON object of strings, got something else.")
    return content
