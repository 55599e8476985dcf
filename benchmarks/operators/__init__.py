"""Time of each runtime by operator."""
