"""The tests of scache."""
