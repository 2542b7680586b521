"""Trained networks and their answers."""
