"""The server that keeps the record of agent sessions."""

__version__ = "0.1.0"
