"""Networks and their blocks."""
