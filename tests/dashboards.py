"""What a run's dashboards hold, read back from their files."""

import csv
import json
from pathlib import Path

from siglightning.runtime.wandb_file import history_row, read_entries

BESIDE = ("epoch", "examples_seen")
NOT_METRICS = ("_timestamp", "_runtime", "_step", "global_step", "_wandb.runtime")


def wandb_files(run_dir):
    """The run's files in the order of their starts."""
    return sorted(Path(run_dir).glob("wandb/offline-run-*/run-*.wandb"))


def wandb_records(run_dir, kind):
    """All records of a kind, in the order in which they were written."""
    records = [entry.record for path in wandb_files(run_dir) for entry in read_entries(path)]
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def wandb_rows(run_dir, files=None):
    """Logged rows as dictionaries, those of later starts behind; or those of some files."""
    files = wandb_files(run_dir) if files is None else files
    rows = [history_row(entry.record) for path in files for entry in read_entries(path)]
    return [row for row in rows if row]


def once(points):
    """``{(metric, step): value}``; of a step nothing comes twice but what stands beside every row, which is equal."""
    found = {}
    for name, step, value in points:
        assert (name, step) not in found or (name in BESIDE and found[name, step] == value), (name, step)
        found[name, step] = value
    return found


def wandb_points(run_dir):
    """Scalars of W&B."""
    return once(
        (name, int(row["global_step"]), float(value))
        for row in wandb_rows(run_dir)
        for name, value in row.items()
        if name not in NOT_METRICS and isinstance(value, int | float) and f"{name.rpartition('.')[0]}._type" not in row
    )


def csv_points(run_dir):
    """Scalars of ``metrics.csv``."""
    with (Path(run_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = ((name, int(row["step"]), cell) for row in rows for name, cell in row.items())
    return once((name, step, float(cell)) for name, step, cell in cells if name != "step" and cell != "")


def tensorboard_events(run_dir):
    """All that is on record for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(run_dir) / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    return events.Reload()


def tensorboard_points(run_dir):
    """Scalars of TensorBoard, without the sheet of settings."""
    events = tensorboard_events(run_dir)
    return once((name, event.step, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name))


def media(run_dir):
    """Keys of what is no scalar, by W&B's name of its kind."""
    kinds = {}
    for row in wandb_rows(run_dir):
        for name, value in row.items():
            if name.endswith("._type"):
                kinds[name.removesuffix("._type")] = value
    return kinds


def wandb_table(run_dir, row, key):
    """Columns and data of a logged table."""
    (path,) = Path(run_dir).glob(f"wandb/offline-run-*/files/{row[key + '.path']}")
    table = json.loads(path.read_text())
    return table["columns"], table["data"]
