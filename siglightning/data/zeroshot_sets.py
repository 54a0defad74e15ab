"""Evaluation sets with classes of their own, beside the data that are trained on."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from siglightning.batch import ClassSet, InputSpec
from siglightning.data.collate import Sample

if TYPE_CHECKING:
    from siglightning.data.base import BaseDataModule


class ZeroShotSets:
    """Data modules of which only the test sets are used, and of these only pictures and labels.

    A set is called as its data module is here, with the test set's own name behind it where there are several.

    Args:
        modules: name -> data module with classes.
    """

    def __init__(self, modules: "Mapping[str, BaseDataModule]") -> None:
        self.modules = dict(modules)
        self._names: dict[str, tuple[BaseDataModule, str]] = {}

    def __bool__(self) -> bool:
        return bool(self.modules)

    def prepare_data(self) -> None:
        """Fetch what is missing."""
        for module in self.modules.values():
            module.prepare_data()

    def setup(self, trainer: Any, spec: InputSpec, taken: Collection[str] = ()) -> None:
        """Open the data, of which no captions are read.

        Args:
            trainer: of the data module beside which the sets stand.
            spec: what the model wants.
            taken: names of that data module's own sets.

        Raises:
            ValueError: a data module without classes, or a set that is called like another one.
        """
        self._names = {}
        for key, module in self.modules.items():
            module.trainer = trainer
            module.input_spec = replace(spec, tokenizer=None)
            module.setup("test")
            sets = module.test_set_names
            for name in sets:
                if module.classes_of(name) is None:
                    raise ValueError(
                        f"Expected classes in `data.init_args.zeroshot_sets.{key}`, but {type(module).__name__} has "
                        "none. Take data with labels, or make it the data module to have its retrieval evaluated."
                    )
                self._names[key if len(sets) == 1 else f"{key}/{name}"] = module, name
        if same := sorted(self._names.keys() & set(taken)):
            raise ValueError(
                f"Expected other names in `data.init_args.zeroshot_sets` than those of the data's own sets, got "
                f"{same[0]!r}: both would report under it. Call it otherwise."
            )

    @property
    def names(self) -> list[str]:
        """Of all sets, in the order of their loaders; known after :meth:`setup`."""
        return list(self._names)

    def classes_of(self, name: str) -> ClassSet | None:
        """The classes of a set; ``None`` for one that is not among these."""
        if name not in self._names:
            return None
        module, inner = self._names[name]
        return module.classes_of(inner)

    def loaders(self) -> list[DataLoader[Sample]]:
        """One a set, of pictures and labels."""
        return [loader for module in self.modules.values() for loader in module.test_dataloader()]
