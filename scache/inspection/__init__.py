"""Inspection of a database: images, reports and checks. The daemon does not use this package."""
