"""Velocity templates as agents' instructions need them: values only, in bounded time and space."""
