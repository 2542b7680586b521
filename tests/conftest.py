"""Its place makes `tests` importable from: `import tiny_runs`, `from reference import ride_loss`."""
