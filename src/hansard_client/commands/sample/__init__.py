"""A document to try Hansard with."""
