"""The report of a method comparison study: Markdown, a page, figures, tables for a terminal."""

from interp_plugin.rendering.study.bars import bars_figure
from interp_plugin.rendering.study.front import can_be_drawn, front_figure
from interp_plugin.rendering.study.github import markdown
from interp_plugin.rendering.study.report import to_html
from interp_plugin.rendering.study.terminal import print_list, print_tables, study_tables
from interp_plugin.rendering.study.values import StudyCell, StudyColumn, StudyPoint, StudyTable

__all__ = [
    "StudyCell",
    "StudyColumn",
    "StudyPoint",
    "StudyTable",
    "bars_figure",
    "can_be_drawn",
    "front_figure",
    "markdown",
    "print_list",
    "print_tables",
    "study_tables",
    "to_html",
]
