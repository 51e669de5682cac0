"""The running daemon, as its clients and its operator see it."""
