"""What all data modules share: loaders, seeds, exact resuming, and errors before any work is wasted."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from siglightning.batch import Batch, ClassSet, InputSpec
from siglightning.data.class_examples import ClassExample, find_examples
from siglightning.data.collate import Collate, LoadedBatch, Sample
from siglightning.data.colour import recolour
from siglightning.data.dataset import SampleDataset
from siglightning.data.loaders import ResumableLoader, share_memory
from siglightning.data.noise import LabelNoise, NoisyDataset
from siglightning.data.orders import Order
from siglightning.data.sampler import EvaluationSampler, GlobalBatchSampler, SampleKey, check_global_batch
from siglightning.data.zeroshot_sets import ZeroShotSets
from siglightning.runtime.processes import notice


class BaseDataModule(LightningDataModule, ABC):
    """Loaders for data sets that a subclass builds in :meth:`build`.

    The order of training depends on (seed, epoch) only. A checkpoint holds what identifies the data; a resumed run
    continues at the very next global batch, with any number of processes, and refuses other data.

    Args:
        global_batch_size: samples in one optimiser step, over all processes.
        eval_batch_size: samples at a time in evaluation, on each process.
        num_workers: loading processes for each training process; 0 loads in the training process.
        seed: of the order, the augmentation and the choice of captions.
        noise: corrupts training samples, for studies of robustness.
        allow_changed_data: go on with a checkpoint that was trained on other data or with another batch. The run then
            is not what an undisturbed one would have been.
        zeroshot_sets: name -> data module, whose test sets are also classified by prompts, in validation and tests.

    Attributes:
        train_set: set by :meth:`build`.
        val_set: set by :meth:`build`.
        test_sets: name -> data set, in the order of the test loaders; set by :meth:`build`.
        class_names: names of the label's classes for zero-shot prompts, or ``None``.
        prompt_templates: sentences with ``{}`` in the place of a class name.
        input_spec: what the model wants; taken from the Trainer's model unless set by hand.
    """

    train_set: SampleDataset
    val_set: SampleDataset
    test_sets: dict[str, SampleDataset]

    def __init__(
        self,
        global_batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        noise: LabelNoise | None = None,
        allow_changed_data: bool = False,
        zeroshot_sets: dict[str, "BaseDataModule"] | None = None,
    ) -> None:
        super().__init__()
        if eval_batch_size < 1 or num_workers < 0:
            raise ValueError(
                "`data.init_args.eval_batch_size` must be at least 1 and `num_workers` at least 0, "
                f"got {eval_batch_size} and {num_workers}."
            )
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.noise = noise
        self.allow_changed_data = allow_changed_data
        self.zeroshot_sets = ZeroShotSets(zeroshot_sets or {})
        self.captions_read = self.captions_truncated = 0
        self.class_names: list[str] | None = None
        self.prompt_templates: list[str] = ["{}"]
        self.input_spec: InputSpec | None = None
        self._sampler: GlobalBatchSampler | None = None
        self._is_built = False

    @abstractmethod
    def build(self, spec: InputSpec) -> None:
        """Sets `train_set`, `val_set`, `test_sets` and, where they apply, `class_names` and `prompt_templates`.

        Raises:
            ValueError: the data are missing or unusable.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the training data: equal strings mean equal samples. Known after :meth:`setup`."""

    @property
    def test_set_names(self) -> list[str]:
        """Names of the test loaders, in their order."""
        return [*self.test_sets, *self.zeroshot_sets.names]

    @property
    def val_set_names(self) -> list[str]:
        """Names of the validation loaders, in their order; the first one is called ``val``."""
        return ["val", *self.zeroshot_sets.names]

    def classes_of(self, set_name: str) -> ClassSet | None:
        """The classes of an evaluation set and the templates of their prompts; ``None`` for one without classes."""
        own = ClassSet(self.class_names, self.prompt_templates) if self.class_names else None
        return self.zeroshot_sets.classes_of(set_name) or own

    def prepare_data(self) -> None:
        """Fetch what is missing, once on each machine; only what is asked for."""
        self.zeroshot_sets.prepare_data()

    @property
    def averaged_test_sets(self) -> list[str]:
        """Test sets of the same pictures, such as those of several languages, whose mean is a result; none here."""
        return []

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, after the Trainer's `limit_train_batches`. Known after :meth:`setup`."""
        whole = len(self._require_sampler())
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        limited = limit if isinstance(limit, int) else int(whole * (1.0 if limit is None else limit))
        return min(whole, limited)

    def check_processes(self, trainer: Trainer) -> None:
        """Raises ``ValueError`` unless a global batch can be shared; the command line asks before processes start."""
        check_global_batch(self.global_batch_size, trainer.world_size)

    def setup(self, stage: str | None = None) -> None:
        """Builds the data sets and checks that the batch fits them, before any training.

        Raises:
            ValueError: nobody says what the model wants, a batch does not fit, or Lightning would repeat samples.
        """
        if not self._is_built:
            self._check_trainer()
            self.build(self._find_spec())
            self.zeroshot_sets.setup(self.trainer, self._find_spec(), taken=["val", *self.test_sets])
            self._is_built = True
            if self.noise is not None:
                self.train_set = NoisyDataset(self.train_set, self.noise)
        if self._sampler is None and stage in (None, "fit"):
            self._sampler = self._make_sampler()

    def _make_sampler(self) -> GlobalBatchSampler:
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        return GlobalBatchSampler(
            len(self.train_set),
            self.global_batch_size,
            *self._rank_and_world_size(),
            seed=self.seed,
            shuffle=not overfit,
            order=None if overfit else self.order(),
            position=None if self.trainer is None else self._trained_position,
        )

    def before_loading(self) -> None:
        """Last checks, when loaders are made: by then a checkpoint's weights are in the model. Nothing by default."""

    def order(self) -> Order | None:
        """The order of training samples where it is not a plain shuffle; asked after :meth:`build`."""
        return None

    @property
    def contents(self) -> frozenset[str]:
        """Keys of the batches, known after :meth:`setup`; a task that needs others refuses these data."""
        return frozenset(self.example)

    @property
    def example(self) -> Batch:
        """One validation sample as a batch, known after :meth:`setup`; a task that needs others refuses these data."""
        batch = self._collate()([self.val_set[0]])
        batch.pop("truncated", None)
        return batch

    def class_examples(self) -> list[ClassExample] | None:
        """A training picture of each class, only resized, known after :meth:`setup`.

        Returns:
            One entry a class, in their order; ``None`` for data without classes, with several a picture, or whose
            labels cannot be had without reading every picture (tars and streams).
        """
        return find_examples(self.train_set, self.class_names or [])

    def evaluated_pictures(self, set_name: str, rows: Sequence[int], shares: Sequence[int] = ()) -> list[Tensor | None]:
        """Pictures that were evaluated, read once more; any process can read them all.

        Args:
            set_name: ``val``, or a name of `test_set_names`.
            rows: of the results of all processes, in the order of their ranks.
            shares: how many pictures each process evaluated, which a limit of batches makes fewer than its share;
                needed with several processes.

        Returns:
            uint8 ``[3, S, S]`` each, or ``None`` for data without pictures.
        """
        dataset = self.val_set if set_name == "val" else self.test_sets[set_name]
        places = []
        for rank, share in enumerate(shares or [len(dataset)]):
            places += [key.sample for key in islice(EvaluationSampler(len(dataset), rank, max(1, len(shares))), share)]
        return [dataset[SampleKey(places[row], 0)].get("image") for row in rows]

    def train_dataloader(self) -> DataLoader[Sample]:
        """This process's share of each global batch, from where training stands."""
        self.before_loading()
        self.train_set.prepare()
        sampler = self._require_sampler()
        return ResumableLoader(
            self.train_set,
            batch_sampler=sampler,
            persistent_workers=self.num_workers > 0,
            **self._loading(),
        )

    def plain_train_dataloader(self) -> DataLoader[Sample]:
        """This process's share of all training samples, once and in order, their pictures only resized; for probes."""
        plain = self.train_set.plain()
        if plain.pictures_vary:
            raise ValueError(
                f"Expected training pictures that can be read once each, only resized; those of {type(self).__name__} "
                "come augmented or in a stream. Read them by position, or turn `augmentation` off."
            )
        return self.evaluation_dataloader(plain)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Every validation sample once, in order; a list where there are `zeroshot_sets`, too."""
        own = self.evaluation_dataloader(self.val_set)
        return [own, *self.zeroshot_sets.loaders()] if self.zeroshot_sets else own

    def test_dataloader(self) -> list[DataLoader[Sample]]:
        """One loader a test set, in the order of `test_set_names`."""
        own = [self.evaluation_dataloader(test_set) for test_set in self.test_sets.values()]
        return [*own, *self.zeroshot_sets.loaders()]

    def predict_dataloader(self) -> list[DataLoader[Sample]]:
        """The test sets again, divided in the same way."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Apply on the device what loading processes have only drawn, and count what they had to cut."""
        loaded: LoadedBatch = batch
        colour = loaded.pop("colour", None)
        if colour is not None:
            loaded["image"] = recolour(loaded["image"], colour)
        self.captions_truncated += loaded.pop("truncated", 0)
        self.captions_read += len(loaded["text"]) if "text" in loaded else 0
        return loaded

    def teardown(self, stage: str) -> None:
        """Say how many captions lost their end, once a stage has used them."""
        if self.captions_truncated:
            notice(
                f"{self.captions_truncated:,} of {self.captions_read:,} captions were longer than the model's context "
                "and lost their end."
            )
        self.captions_read = self.captions_truncated = 0

    def state_dict(self) -> dict[str, Any]:
        """What must be the same when a run goes on: the position itself is in Lightning's own counters."""
        return {
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "fingerprint": self.fingerprint,
            "noise": None if self.noise is None else self.noise.identity,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares a checkpoint's data with ours; only a training run that goes on cares.

        Raises:
            ValueError: something differs, so that the run could not continue where it stopped.
        """
        if self.allow_changed_data or (self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING):
            return
        ours = self.state_dict()
        changes = [f"{k}: {old} -> {ours[k]}" for k, old in state_dict.items() if k in ours and ours[k] != old]
        if changes:
            raise ValueError(
                f"Expected the training data of the checkpoint, got others: {'; '.join(changes)} (`fingerprint` is "
                "that of samples, captions and augmentation). Restore them, start a new run from the weights, or go "
                "on, not at the same place, with `data.init_args.allow_changed_data: true`."
            )

    def _trained_position(self) -> tuple[int, int]:
        """(epoch, batches done in it), from the count of trained batches that every checkpoint holds.

        Asked at the start of each iteration. Lightning may start one before it has restored its epoch, or start it
        twice around the end of an epoch; the count of trained batches is right at all these moments.
        """
        assert self.trainer is not None
        total = self.trainer.fit_loop.epoch_loop.batch_progress.total
        assert isinstance(total, _ProcessedTracker)
        return divmod(total.processed, self.steps_per_epoch)

    def evaluation_dataloader(self, dataset: SampleDataset) -> DataLoader[Sample]:
        """This process's share of one set, once and in order."""
        self.before_loading()
        rank, world_size = self._rank_and_world_size()
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            sampler=EvaluationSampler(len(dataset), rank, world_size),
            **self._loading(),
        )

    def _collate(self) -> Collate:
        return Collate(self._find_spec().tokenizer)

    def _find_spec(self) -> InputSpec:
        if self.input_spec is None and self.trainer is not None:
            self.input_spec = getattr(self.trainer.lightning_module, "input_spec", None)
        if self.input_spec is None:
            raise ValueError(
                "The data module must know the model's image size and tokenizer. Give the Trainer a model with an "
                "`input_spec`, or set `datamodule.input_spec = InputSpec(image_size, tokenizer)` before `setup()`."
            )
        return self.input_spec

    def _require_sampler(self) -> GlobalBatchSampler:
        if self._sampler is None:
            raise ValueError(f"{type(self).__name__} is not set up yet: call `setup()` first.")
        return self._sampler

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loading(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers = {"num_workers": self.num_workers, "worker_init_fn": share_memory}
        return {**workers, "collate_fn": self._collate(), "pin_memory": on_gpu}

    def _check_trainer(self) -> None:
        """Lightning's own distributed sampler would reshuffle training and repeat samples in evaluation."""
        if self.trainer is None or self.trainer.world_size == 1:
            return
        if self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "The data modules divide samples among processes themselves: `trainer.use_distributed_sampler` must "
                "be false, got true."
            )
