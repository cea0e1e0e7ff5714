"""σ as lines of Triton: traced, its axes cut into tiles, one line an operator."""
