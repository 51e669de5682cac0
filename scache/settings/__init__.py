"""The settings: declared once, and loaded from options, environment and file."""
