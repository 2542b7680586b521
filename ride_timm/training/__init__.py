"""Training: what is asked for, what that resolves to, the stages, and the loop."""
