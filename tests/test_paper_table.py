"""Everything that the page on the paper refers to is there, and every recipe of the paper is told."""

import re
from pathlib import Path

from test_reports_table import missing_tests

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text()
NAMES = [name for name in re.findall(r"`([^`\n]+)`", PAGE) if " " not in name]
FILES = [name for name in NAMES if re.match(r"(tests|benchmarks|siglightning|docs)/", name)]
CONFIGS = [name for name in NAMES if re.match(r"(recipe|variant|data|logger)/", name)]
# What each line of the paper is about that the page must have a row for.
LINES = [
    r"§3\.2: \"initialize",
    r"§3\.2: the printed equation",
    r"prints that equation",
    r"Table 1's caption",
    r"900M steps",
    r"I→T",
    r"garbled",
    r"appendix",
    r"Algorithm 1: unit rows",
    r"softmax baseline",
    r"t' and b global",
    r"chunked:",
    r"Figure 1",
    r"a single pass",
    r"4096 Base",
    r"does not define",
    r"79\.7",
    r"84\.5",
    r"71\.0",
    r"72\.1",
    r"FLIP",
    r"4k batch",
    r"§4\.1",
    r"Figure 3",
    r"§4\.2",
    r"§4\.3",
    r"Table 2",
    r"XM3600",
    r"ScalingViT",
    r"§4\.7",
    r"§4\.4: L",
    r"§4\.4: g",
    r"§4\.5",
    r"Figure 4",
    r"§4\.6: 40B",
    r"§4\.6: then",
    r"Table 3",
    r"Figure 5",
    r"Table 4",
    r"§4\.10",
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


def test_every_line_has_a_row():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert [line for line in LINES if not any(re.search(line, row) for row in rows)] == []
