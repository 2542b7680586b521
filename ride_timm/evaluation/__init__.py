"""Measuring a network: one pass over the images yields everything, and what it yields."""
