"""Sections of panels as a workspace of W&B, by the package wandb-workspaces."""

import json
from typing import Any

from siglightning.commands.dashboard.layout import Panel, Sections

_COLUMNS, _ROWS = 3, 3  # panels of a section that are seen at once


def build_workspace(name: str, sections: Sections, entity: str, project: str) -> Any:
    """The workspace; its first two sections are open, and ``global_step`` is the axis of what names none.

    Args:
        name: of the view.
        sections: panels by section, see :func:`siglightning.commands.dashboard.layout.sections_of`.
        entity: user or team.
        project: of the runs.

    Raises:
        ValueError: the package is missing.
    """
    workspaces, _ = _library()
    layout = workspaces.SectionLayoutSettings(columns=_COLUMNS, rows=_ROWS)
    built = [
        workspaces.Section(
            name=title,
            panels=[_panel(panel) for panel in panels],
            is_open=number < 2,
            layout_settings=layout,
        )
        for number, (title, panels) in enumerate(sections.items())
    ]
    settings = workspaces.WorkspaceSettings(x_axis="global_step")
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=built, settings=settings)


def as_json(workspace: Any) -> str:
    """The definition that W&B's server would get."""
    view = workspace._to_model()  # the package has no public way to look at it without a server
    return json.dumps(json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)), indent=1) + "\n"


def save(workspace: Any) -> str:
    """Save as a new view.

    Returns:
        Its address.

    Raises:
        ValueError: the server does not take it, or nobody is logged in.
    """
    try:
        return str(workspace.save_as_new_view().url)
    except Exception as error:  # of several libraries below
        place = f"{workspace.entity}/{workspace.project}"
        raise ValueError(
            f"W&B did not save the workspace for {place}: {str(error).rstrip('.')}. Log in with `wandb login`, or "
            "write it down with --out FILE."
        ) from error


def _panel(panel: Panel) -> Any:
    _, reports = _library()
    if panel.kind == "pictures":
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=4)
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=panel.keys[0])
    found = {"metric_regex": panel.pattern} if panel.pattern else {"y": list(panel.keys)}
    return reports.LinePlot(title=panel.title, x=panel.x, log_y=panel.logarithmic or None, **found)


def _library() -> tuple[Any, Any]:
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports.v2 import panels
    except ImportError as error:
        raise ValueError('Workspaces of W&B need an extra: pip install "siglightning[dashboard]".') from error
    return workspaces, panels
