"""What every operation is: one row each, declared beside its handler."""
