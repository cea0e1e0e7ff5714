"""What stands in the place of W: a linear map [.., K] -> [.., N] in another form, one file a kind."""
