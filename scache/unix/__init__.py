"""Descriptors, sockets, paths and users, as Linux shows them."""
