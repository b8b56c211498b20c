"""Texts of any model that reads tokens: from a text to its explanation."""
