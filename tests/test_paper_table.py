"""Everything that the page on the paper refers to is there, and every recipe of the paper is told."""

import re
from pathlib import Path

from test_reports_table import missing_tests

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text()
NAMES = [name for name in re.findall(r"`([^`\n]+)`", PAGE) if " " not in name]
FILES = [name for name in NAMES if re.match(r"(tests|benchmarks|siglightning|docs)/", name)]
CONFIGS = [name for name in NAMES if re.match(r"(recipe|variant|data|logger)/", name)]
# How each row of the page begins, in its order: what the paper says, line by line.
ROWS = [
    '§3.2: "initialize',
    "§3.2: the printed equation",
    "one of the student reports prints that equation",
    "Table 1's caption",
    '§4.8: "900M steps"',
    '§4.6: "text-to-image (I→T)"',
    "§3.3: the chunked sum is garbled",
    "the appendix",
    "inconsistencies of the three student reports",
    "Algorithm 1: unit rows",
    "softmax baseline",
    "t' and b global",
    "chunked:",
    "Figure 1:",
    "symmetric, a single pass",
    "4096 Base SigLIP",
    "the batch does not define the task",
    "SigLiT B/8 + L of 12 layers",
    "SigLiT g/14 + L",
    "SigLIP B/16 (public, unlocked)",
    "SigLIP B/16 + B from scratch",
    "FLIP some 5 days",
    "4k batch of Base",
    "§4.1:",
    "sigmoid well above softmax below 16k",
    "Figure 3:",
    "§4.2:",
    "best at 32k; softmax at 98k",
    "§4.3:",
    "vocabulary 32k against 250k",
    "bottleneck N x K + K x W",
    "Table 2:",
    "XM3600, 36 languages",
    "ScalingViT-Adafactor by default",
    "§4.7: beta2",
    "§4.4: Lion",
    "§4.4: g/14",
    "§4.5: 10-shot",
    "§4.5: B/16 unlocked",
    "Figure 4:",
    "§4.6: 40B",
    "§4.6: then 5B",
    "Table 3:",
    "Figure 5:",
    "Table 4:",
    "§4.8: negatives left out",
    "expected signs:",
    "Figure 6:",
    "§4.10: M/16",
    "§4.10: alignment is shuffled",
    "noise on images, texts, alignment",
    "data sets:",
    "WebLI, the LiT set",
]


def test_files_configurations_and_tests_are_there():
    assert len(FILES) > 40
    assert len(CONFIGS) > 30
    paths = [name.partition("::")[0] for name in FILES] + [f"configs/{name}.yaml" for name in CONFIGS]
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    assert missing_tests(FILES) == []


def test_recipes_and_variants_of_the_paper_are_all_told():
    kinds = ("siglip", "siglit", "msiglip", "pocket")
    recipes = {f"recipe/{path.stem}" for kind in kinds for path in (ROOT / "configs/recipe").glob(f"{kind}_*.yaml")}
    variants = {f"variant/{path.stem}" for path in (ROOT / "configs/variant").glob("*.yaml")}
    assert (recipes | variants) - {"recipe/siglit_demo"} == {name for name in CONFIGS if name[0] in "rv"}


def content_rows():
    """Rows of the tables whose first column is the paper's, without their heads."""
    tables = re.findall(r"^\| the paper \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    return [row.removeprefix("| ") for table in tables for row in table.splitlines()]


def test_every_line_has_one_row_and_every_row_a_line():
    """In order, each by its own beginning, so that no row can stand for another that is gone."""
    rows = content_rows()
    matches = [[row for row in rows if row.startswith(start)] for start in ROWS]
    assert {start: len(found) for start, found in zip(ROWS, matches, strict=True) if len(found) != 1} == {}
    assert [found[0] for found in matches] == rows
    assert all(len(row.strip(" |").split(" | ", 1)[1]) > 10 for row in rows)  # and says something


def test_the_readme_has_the_table_of_the_study():
    """Whole and as it was measured, with links as from there; one row for each study."""
    studies = ROOT / "benchmarks" / "results" / "paper"
    published = (studies / "README.md").read_text()
    rows = re.findall(r"^\| \[[^]]+\]\(\w+\.md\) .*$", published, flags=re.MULTILINE)
    assert len(rows) == len(list(studies.glob("*.json"))) == 10
    here = [re.sub(r"\]\((\w+\.md)\)", r"](benchmarks/results/paper/\1)", row) for row in rows]
    assert "\n".join(here) in (ROOT / "README.md").read_text()


def test_the_published_list_is_that_of_the_page():
    from benchmarks.paper.pages import RESULTS, line_by_line

    assert (RESULTS / "README.md").read_text().endswith(line_by_line())
