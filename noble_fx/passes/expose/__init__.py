"""Every way to write a linear map becomes linear(x, w, b)."""
