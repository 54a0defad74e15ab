"""``siglightning dashboard``: what it refuses. Its panels and what runs log: tests/cli/test_dashboard_numbers.py."""

import json
import sys

import pytest

from siglightning.cli import main
from siglightning.commands.dashboard.layout import Panel, sections_of


def test_every_set_has_its_tables_and_pictures(tmp_path, capsys):
    out = tmp_path / "workspace.json"
    sets = ["seen", "unseen"]
    assert main(["dashboard", "--task", "contrastive", "--sets", *sets, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Written to {out}\n"
    text = out.read_text()
    for name in sets:
        assert all(json.dumps(f"{name}/{key}") in text for key in ("hardest_negatives", "predictions", "per_class"))
    assert '"test/predictions"' not in text


MISTAKES = {
    "nowhere": (["--task", "finetune"], "--entity and --project to save the workspace for, or --out FILE"),
    "nobody": (["--task", "finetune", "--entity", "me", "--project", "p"], "W&B did not save the workspace for me/p: "),
    "task": (["--task", "segment"], "invalid choice: 'segment'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name, tmp_path, monkeypatch, capsys):
    """Nobody is logged in, so that no server is asked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    arguments, expected = MISTAKES[name]
    assert main(["dashboard", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_without_the_package_its_install_line_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", "--task", "finetune", "--out", str(tmp_path / "w.json")]) == 2
    assert 'pip install "siglightning[dashboard]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_patterns_end_where_metrics_do():
    assert Panel("x", pattern=r"^test/.+/acc$").shows("test/a b/acc")
    assert not Panel("x", pattern=r"^test/.+/acc$").shows("test/a/acc@5")
    with pytest.raises(ValueError, match="Expected a task of contrastive, finetune, multilabel, got 'x'"):
        sections_of("x")
