"""Corpora: documents that many sessions search."""
