"""Million-AID: aerial pictures of 51 scenes in a tree of folders, whose inner nodes are labels, too."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.sources.files import FilesSource, folders_in, pictures_below
from siglightning.data.sources.layout import tree
from siglightning.evaluation.prompts import Templates

Task = Literal["multi-class", "multi-label"]

_LEAVES = """
    apartment apron bare_land baseball_field basketball_court beach bridge cemetery church commercial_area dam desert
    detached_house dry_field forest golf_course greenhouse ground_track_field helipad ice_land intersection island lake
    meadow mine mobile_home_park oil_field orchard paddy_field parking_lot pier quarry railway river road rock_land
    roundabout runway solar_power_plant sparse_shrub_land stadium storage_tank substation swimming_pool tennis_court
    terraced_field train_station viaduct wastewater_plant wind_turbine works
"""
_INNER_NODES = """
    agriculture_land airport_area arable_land commercial_land factory_area grassland highway_area industrial_land
    leisure_land mining_area port_area power_station public_service_land railway_area religious_land residential_land
    special_land sports_land transportation_land unutilized_land water_area woodland
"""
MILLION_AID_SCENES = tuple(_LEAVES.split())
"""The 51 classes of the single-label task: the leaves of the tree."""
MILLION_AID_LABELS = tuple(sorted((_LEAVES + _INNER_NODES).split()))
"""The 73 classes of the multi-label task: all nodes of the tree."""


class MillionAidSource(FilesSource):
    """Pictures of ``root/LAND/SCENE/*`` and ``root/LAND/GROUP/SCENE/*``, in the order of their paths.

    Args:
        root: the folder of one split.
        task: ``multi-class``, the scene is the label; or ``multi-label``, all folders on the path are.

    Raises:
        ValueError: it does not exist, holds no pictures, or a folder that is no node of the tree.
    """

    def __init__(self, root: str | Path, task: Task = "multi-class") -> None:
        root = Path(root)
        names = list(pictures_below(root))
        places: dict[str, int] = {}
        codes = np.array([places.setdefault(name.rpartition("/")[0], len(places)) for name in names], dtype=np.int64)
        for place in places:
            _check_place(root, place)
        if task == "multi-class":
            numbers = np.array([MILLION_AID_SCENES.index(place.rpartition("/")[2]) for place in places], dtype=np.int64)
        else:
            numbers = np.array([_all_numbers(place) for place in places], dtype=np.int64)
        super().__init__(root, names, numbers[codes], _CLASSES[task])


class MillionAidDataModule(MapStyleDataModule):
    """Million-AID as it is published, and as torchgeo reads it.

    ``root/train`` and, where it has the same folders, ``root/test``; the published test pictures lie in one folder
    without labels and are not used. Folders are ``LAND/SCENE`` or ``LAND/GROUP/SCENE``, such as
    ``agriculture_land/grassland/meadow``. Numbers of classes are those of the sorted names, whatever is there of them.

    Args:
        root: the folder.
        task: ``multi-class``: one of 51 scenes; ``multi-label``: up to three of 73 labels.
        templates: see :class:`MapStyleDataModule`.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        root: str,
        task: Task = "multi-class",
        templates: Templates = ("a satellite image of a {}",),
        **others: Any,
    ) -> None:
        super().__init__(templates=templates, **others)
        if task not in _CLASSES:
            raise ValueError(f"`data.init_args.task` must be {' or '.join(_CLASSES)}, got {task!r}.")
        self.root, self.task = root, task

    @override
    def open_parts(self) -> Parts:
        train, test = Path(self.root) / "train", Path(self.root) / "test"
        if not train.is_dir():
            packed = train.with_suffix(".zip")
            way_out = f"Unpack {packed} there" if packed.is_file() else "Give the folder that holds `train`"
            found = f" Found: {tree(Path(self.root))}" if Path(self.root).is_dir() else ""
            raise ValueError(
                f"Expected Million-AID's training pictures in {train}, which does not exist. {way_out}.{found}"
            )
        has_labels = test.is_dir() and folders_in(test)
        return Parts(
            MillionAidSource(train, self.task), tests={"test": MillionAidSource(test, self.task)} if has_labels else {}
        )


_CLASSES: dict[Task, tuple[str, ...]] = {"multi-class": MILLION_AID_SCENES, "multi-label": MILLION_AID_LABELS}


def _check_place(root: Path, place: str) -> None:
    *above, scene = place.split("/")
    if not 1 <= len(above) <= 2 or scene not in MILLION_AID_SCENES or not set(above) <= set(_INNER_NODES.split()):
        raise ValueError(
            f"Expected Million-AID's folders LAND/SCENE or LAND/GROUP/SCENE in {root}, such as "
            f"agriculture_land/grassland/meadow, got pictures in {place or 'that folder itself'}. Other trees are read "
            f"by FolderDataModule. Found: {tree(root)}"
        )


def _all_numbers(place: str) -> list[int]:
    numbers = [MILLION_AID_LABELS.index(name) for name in place.split("/")]
    return numbers + [-1] * (3 - len(numbers))
