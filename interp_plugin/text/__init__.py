"""Explanations of texts, for any model that reads tokens."""
