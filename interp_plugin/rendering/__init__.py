"""Pictures of an explanation: terminal, page, figures, Captum's records.  Draws the plain values it is given."""

from interp_plugin.rendering.figures import draw_words_heatmap, plot
from interp_plugin.rendering.labels import printable
from interp_plugin.rendering.page import notebook_html, to_html
from interp_plugin.rendering.records import captum_records
from interp_plugin.rendering.shades import shade
from interp_plugin.rendering.terminal import kept_tables, show

__all__ = [
    "captum_records",
    "draw_words_heatmap",
    "kept_tables",
    "notebook_html",
    "plot",
    "printable",
    "shade",
    "show",
    "to_html",
]
