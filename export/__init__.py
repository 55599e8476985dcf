"""Checkpoint to artifact: one program per target, and what they share."""
