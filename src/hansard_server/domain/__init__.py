"""What Hansard is about, in plain Python: no room of the house may be imported here."""
