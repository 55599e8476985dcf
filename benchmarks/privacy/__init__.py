"""Privacy audit: recognition of speakers from features and packets."""
