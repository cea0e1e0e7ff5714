"""The study of the effect: what branches do to the number of training steps, on tasks that two cores can learn."""
