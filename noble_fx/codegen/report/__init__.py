"""What was generated, to read and to judge; no GPU needed."""
