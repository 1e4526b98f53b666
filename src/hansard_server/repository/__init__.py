"""The record on disk: Protocols in `api` and `commands`, one implementation in `sql`."""
