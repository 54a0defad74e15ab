"""`siglightning bench loss`, run for real on small batches: every form, its errors, what it keeps and what it sends."""

import json

import pytest
from PIL import Image

from siglightning.cli import main
from siglightning.commands.bench import mebibytes

PAIRS, DIM = (48, 96), 16
OURS = {"sigmoid, ring (ours)", "sigmoid, gather (ours)", "softmax, ring (ours)"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The folder that one run over one, two and three ranks leaves."""
    out = tmp_path_factory.mktemp("bench") / "new" / "folder"
    sizes = ["--batch", *map(str, PAIRS), "--ranks", "1", "2", "3", "--dim", str(DIM), "--rounds", "1"]
    assert main(["bench", "loss", *sizes, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def rows(bench):
    return json.loads((bench / "loss.json").read_text())["rows"]


def of(rows, form, world_size, pairs):
    (row,) = (row for row in rows if (row["form"], row["world_size"], row["pairs"]) == (form, world_size, pairs))
    return row


def test_all_forms_are_there_on_the_ranks_that_they_run_on(rows):
    forms = {world_size: {row["form"] for row in rows if row["world_size"] == world_size} for world_size in (1, 2, 3)}
    assert {"sigmoid, naive", "sigmoid, tiled (ours)", "softmax, streaming (ours)", "sigmoid, open_clip"} < forms[1]
    variants = {f"sigmoid, open_clip {name}" for name in ("bidir", "shift", "reduce", "gather")}
    assert forms[2] == forms[3] == OURS | variants | {"softmax, open_clip gathered"}
    assert len(rows) == len(PAIRS) * sum(map(len, forms.values()))


def test_each_form_is_right_to_fp32(rows):
    """A gradient that lacks foreign negatives, or a factor of the ranks, would be off by a tenth and more."""
    for row in rows:
        assert {"image", "text", "log_scale"} <= row["errors"].keys()
        assert ("bias" in row["errors"]) == row["form"].startswith("sigmoid")
        assert 0 < max(row["errors"].values()) < 2e-5, row


def test_what_a_ring_keeps_does_not_depend_on_ranks(rows):
    """Two gradients in fp32, two scalars in fp64."""
    for pairs in PAIRS:
        kept = 2 * pairs * DIM * 4 + 16
        for world_size, form in ((1, "sigmoid, tiled (ours)"), *((size, "sigmoid, ring (ours)") for size in (2, 3))):
            assert of(rows, form, world_size, pairs)["saved_mib"] * 2**20 == kept
    assert all(
        of(rows, "sigmoid, open_clip shift", size, 96)["saved_mib"] * 2**20 > size * 96**2 * 4 for size in (2, 3)
    )


def test_what_a_ring_sends_is_blocks_and_their_gradients(rows):
    """Each rank sends D - 1 blocks and D gradients; what other programs send meanwhile may come on top."""
    for world_size in (2, 3):
        block = PAIRS[1] * DIM * 4
        assert of(rows, "sigmoid, ring (ours)", world_size, PAIRS[1])["sent_mib"] * 2**20 > (2 * world_size - 1) * block


def test_times_are_compared_with_ours(rows):
    assert all(row["seconds"] > 0 for row in rows)
    assert {row["ratio"] for row in rows if row["form"] in ("sigmoid, ring (ours)", "sigmoid, tiled (ours)")} == {1.0}


def test_table_and_figures_are_written(bench):
    text = (bench / "loss.md").read_text()
    assert text.count("| sigmoid, ring (ours) |") == 4  # two batches on two and on three ranks
    assert "siglightning bench loss --batch 48 96" in text
    for name in ("loss_over_batch.png", "loss_over_ranks.png"):
        with Image.open(bench / name) as figure:
            assert figure.width > 1000


def test_largest_batch_in_a_given_memory(tmp_path):
    """Naive forms hold several matrices of 4 MiB at 1,024 pairs; tiles of 1,024 rows are no smaller, from there on."""
    limit = ["--find-max-batch", "--memory", "40MiB", "--max-batch", "4096", "--dim", "8"]
    limit += ["--forms", "naive", "ours", "sigmoid, open_clip"]
    assert main(["bench", "loss", *limit, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "max_batch.json").read_text())["rows"]
    alone = {row["form"]: row for row in rows if not row["with_towers"]}
    assert alone["sigmoid, tiled (ours)"]["pairs"] == alone["softmax, streaming (ours)"]["pairs"] == 4096
    for form in ("sigmoid, naive", "softmax, naive", "sigmoid, open_clip"):
        assert 512 <= alone[form]["pairs"] <= 2048, alone[form]
        assert alone[form]["reason"] == "too large"
    towers = {row["form"]: row for row in rows if row["with_towers"]}
    assert all(towers[form]["pairs"] <= row["pairs"] for form, row in alone.items())
    assert "| sigmoid, naive | loss alone |" in (tmp_path / "max_batch.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "the following arguments are required: what"),
        (["bench", "optimizer"], "invalid choice: 'optimizer'"),
        (["bench", "loss", "--batch", "0"], "expected a whole number of at least 1, got '0'"),
        (["bench", "loss", "--batch", "many"], "expected a whole number of at least 1, got 'many'"),
        (["bench", "loss", "--memory", "2"], "expected a size such as 2GiB or 500MiB, got '2'"),
        (["bench", "loss", "--forms", "hinge"], "no form has ['hinge'] in its name; there are: sigmoid, naive;"),
        (
            ["bench", "loss", "--forms", "ring", "--ranks", "1"],
            "None of the forms with ['ring'] in their names",
        ),
        (["bench", "loss", "--out", "/proc/no"], "No such file or directory"),
        (["bench", "loss", "--rank", "2"], "unrecognized arguments: --rank 2"),
        (["bnech", "loss"], "Did you mean 'bench'?"),
    ],
)
def test_wrong_arguments_end_with_two(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_one_form_alone_has_nothing_to_be_compared_with(tmp_path):
    sizes = ["--batch", "16", "--ranks", "1", "--dim", "8", "--rounds", "1", "--forms", "softmax, naive"]
    assert main(["bench", "loss", *sizes, "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "loss.json").read_text())["rows"]
    assert (row["form"], row["ratio"]) == ("softmax, naive", None)


def test_help_ends_with_zero(capsys):
    assert main(["bench", "loss", "--help"]) == 0
    assert "--find-max-batch" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "mib"), [("2GiB", 2048), ("500 MiB", 500), ("1.5gib", 1536), ("1GB", 1e9 / 2**20)])
def test_sizes_are_read_as_people_write_them(text, mib):
    assert mebibytes(text) == pytest.approx(mib)
