"""The kernels of a layer, one function each."""
