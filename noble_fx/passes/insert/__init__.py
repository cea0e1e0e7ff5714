"""A branch is put beside a linear map, or taken away."""
