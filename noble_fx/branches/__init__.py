"""What is added beside a linear map: branches, their activations, and how these are traced and named."""
