"""Tests of the protocol, without a socket."""
