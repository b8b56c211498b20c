"""Corpus studies: information kept by each layer over a corpus of any size, resumable, with standard errors."""
