"""Trained networks: where they come from, and what they need to know of their images."""
