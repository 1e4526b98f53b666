"""The wire: one servicer for each service, and what every call goes through."""
