"""Reports: one model of a page or table, and one renderer for each medium.

``model`` has the dataclasses, ``numbers`` the number format, ``shades`` the colours.  ``explanations`` makes reports
from the plain values of an explanation; corpus and comparison studies make their own.  ``terminal``, ``html``,
``figures``, ``markdown`` and ``records`` render reports.  Nothing here imports the rest of the package.
"""
