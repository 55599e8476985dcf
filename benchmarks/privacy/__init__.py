"""What features and packets tell about the speaker: ``python -m benchmarks.privacy``."""
