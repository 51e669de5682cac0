"""The cache in one process."""
