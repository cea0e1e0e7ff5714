"""What `explain` says: the account of a model as data, where it comes from, and how it is shown."""
