"""What users see: one model of a page or table, and one renderer for each medium.

``model`` holds the dataclasses, ``numbers`` the number format, ``shades`` the colours.  ``explanations`` fills the
model from the plain values of an explanation; corpus and comparison studies fill it themselves.  ``terminal``,
``html``, ``figures``, ``markdown`` and ``records`` render it.  Nothing here imports the rest of the package.
"""
