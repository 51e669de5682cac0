"""Screens: what a running daemon shows to other programs and to people."""
