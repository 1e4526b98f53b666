"""Artifacts: the files of sessions, their bytes in an object store."""
