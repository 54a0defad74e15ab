"""What is installed: tested versions within the bounds, no release known to be bad, nothing from elsewhere."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
BOUNDS = [Requirement(line) for line in (*PROJECT["dependencies"], *EXTRAS) if not line.startswith("siglightning[")]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
# Malicious uploads, and releases whose `weights_only` loading can be made to run code (torch before 2.10).
BAD = {"lightning": ["2.6.2", "2.6.3"], "torch": ["2.5.1", "2.6.0", "2.9.1"]}


def pinned():
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def test_constraints_are_names_and_versions_each_once_and_nothing_else():
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[0-9][\w.+!]*", line)] == []
    assert len(pinned()) == len(LINES) > 100


def test_tested_versions_are_within_the_bounds():
    tested = pinned()
    assert len(BOUNDS) > 25
    assert {bound.name for bound in BOUNDS if canonicalize_name(bound.name) not in tested} == {"resvg-py"}  # no test's
    versions = {bound: tested.get(canonicalize_name(bound.name)) for bound in BOUNDS}
    assert [str(bound) for bound, version in versions.items() if version and version not in bound.specifier] == []


def test_every_bound_says_from_where_on():
    bare = {"types-PyYAML"}  # stubs, which follow the newest release
    assert {bound.name for bound in BOUNDS if not bound.specifier} == bare


@pytest.mark.parametrize("name", BAD)
def test_releases_known_to_be_bad_are_excluded(name):
    (bound,) = [bound for bound in BOUNDS if bound.name == name]
    assert [version for version in BAD[name] if version in bound.specifier] == []


def test_nothing_comes_from_an_address():
    assert [bound for bound in BOUNDS if bound.url] == []
    for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", *(ROOT / ".ci").iterdir()):
        assert not re.search(r"--(extra-)?index-url|--find-links|git\+|--trusted-host", path.read_text()), path
