"""Export of a checkpoint to a device artifact: commands, backends, and the modules they share."""
