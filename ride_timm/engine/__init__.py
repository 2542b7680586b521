"""The parts of training: arguments, set-up, loop and checkpoints."""
