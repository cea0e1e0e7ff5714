"""A linear map and its branch become one operator, and sites of one input one call."""
