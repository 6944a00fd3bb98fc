"""What is known of an operation and of a tensor: where it came from, its sign, what may be written."""
