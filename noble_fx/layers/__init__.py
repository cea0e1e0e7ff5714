"""Which layer classes may carry a branch, and the classes that do."""
