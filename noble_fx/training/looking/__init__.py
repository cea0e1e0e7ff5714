"""Looking at a model while it trains: shares, norms, rates, where numbers stop being finite."""
