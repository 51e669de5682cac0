"""The store: migrations, files, writes, audit log."""
