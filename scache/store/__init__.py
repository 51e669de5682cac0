"""The database: opening and recovering it, its live rows and its audit log."""
