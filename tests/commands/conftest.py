"""A run without defects for the doctor: built once, since that is what costs."""

from dataclasses import replace

import pytest
from examined import case_of


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A run without defects; nobody may change it."""
    return case_of(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def small(sound):
    """The same run, as a case that has looked at nothing yet; what is planted in its parts, `monkeypatch` takes out."""
    return replace(sound)
