"""The tools that agents have."""
