"""The settings: their declarations, and loading from options, environment and file."""
