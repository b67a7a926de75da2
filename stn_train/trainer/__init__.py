"""Training: from a config to a trained, tested model in a run directory."""
