"""Implementation of the tools for contributors: one subpackage for each of them."""
