"""A loading process does not grow over a table of millions of rows."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from siglightning.batch import InputSpec
from siglightning.data import Augmentation, TableDataModule

ROWS = 5_000_000
LIMIT_MIB = 300  # what the project promises
PLAIN = Augmentation(0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Five million rows, a caption of its own each, ten small pictures among them."""
    root = tmp_path_factory.mktemp("rows")
    for number in range(10):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(root / f"picture-{number}.png")
    numbers = pa.array(np.arange(ROWS))
    captions = pa.compute.binary_join_element_wise("a picture like many others, number", numbers.cast(pa.string()), " ")
    paths = pa.array([f"picture-{number}.png" for number in range(10)]).take(pa.array(np.arange(ROWS) % 10))
    pq.write_table(pa.table({"image": paths, "caption": captions}), root / "rows.parquet")
    return root / "rows.parquet"


def own_kib():
    """Memory that this process shares with no other: pages that it made or wrote on."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


class Watched(torch.utils.data.Dataset):
    """A data set that takes down, before and after each batch, what its process has for itself."""

    def __init__(self, dataset, path, every):
        self.dataset, self.path, self.every, self.batches = dataset, path, every, 0

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, keys):
        if self.batches == 0:
            self.note()
        samples = self.dataset.__getitems__(keys)
        self.batches += 1
        if self.batches % self.every == 0:
            self.note()
        return samples

    def note(self):
        with open(f"{self.path}-{os.getpid()}", "a") as file:
            file.write(f"{own_kib()}\n")


def growth_mib(table, tmp_path, batches, every):
    """Peak growth of two loading processes over so many batches of 500 rows from all over the table."""
    module = TableDataModule(str(table), global_batch_size=500, num_workers=2, augmentation=PLAIN, val_fraction=1e-6)
    module.input_spec = InputSpec(8, lambda captions: torch.zeros(len(captions), 4, dtype=torch.int64))
    module.setup()
    module.train_set = Watched(module.train_set, tmp_path / "memory", every)
    module.train_set.prepare = lambda: None
    loader = module.train_dataloader()
    for _, batch in zip(range(batches), loader, strict=False):
        assert batch["image"].shape == (500, 3, 8, 8)
    del loader
    notes = [[int(line) for line in path.read_text().split()] for path in tmp_path.glob("memory-*")]
    assert len(notes) == 2
    return max(max(values) - values[0] for values in notes) / 1024


def test_workers_do_not_grow_over_rows_from_all_over_the_table(table, tmp_path):
    growth = growth_mib(table, tmp_path, batches=160, every=10)
    print(f"peak growth of a loading process over 80,000 rows from everywhere: {growth:.0f} MiB")
    assert growth < 60  # Python objects would cost some 4 kB a row: a page is copied for each count of references


@pytest.mark.slow
def test_workers_do_not_grow_over_the_whole_table(table, tmp_path):
    growth = growth_mib(table, tmp_path, batches=ROWS // 500 - 1, every=100)
    print(f"peak growth of a loading process over {ROWS:,} rows: {growth:.0f} MiB")
    assert growth < LIMIT_MIB
