"""The model repository: its files, loading and unloading, model configuration, and the plans that served models follow."""
