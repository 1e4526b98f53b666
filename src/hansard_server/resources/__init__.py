"""Agents and sessions themselves: what one may do with them, and what lists have in common."""
