"""What a saved folder holds: weights as plain tensors by the user's own names, and the settings beside them."""
