"""The composition: makes every part of a server and ties them together; alone in knowing all."""

from hansard_server.app.server import Server

__all__ = ["Server"]
