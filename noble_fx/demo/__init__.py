"""`noble-fx demo`: a byte-level GPT trained plain and with branches, on text that every Python has."""
