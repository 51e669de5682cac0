"""How results are written: tables, JSON, CSV, and screens for a terminal."""
