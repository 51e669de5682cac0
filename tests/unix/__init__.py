"""Descriptors and sockets."""
