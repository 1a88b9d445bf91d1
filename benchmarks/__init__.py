"""What `make bench-*` runs: every figure in the README comes from here."""
