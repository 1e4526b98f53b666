"""Peers: what the processes of one store say to each other."""
