"""Reports: one model of a page or table, and one renderer for each medium.

``model`` has the dataclasses, ``numbers`` the number format and the shades.  ``explanations`` makes reports, and
records for Captum's ``visualize_text``, from the plain values of an explanation; corpus and comparison studies make
their own reports.  ``terminal``, ``html``, ``figures`` and ``markdown`` render them.  Nothing here imports the rest of
the package.
"""
