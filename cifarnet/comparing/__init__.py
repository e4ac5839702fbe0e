"""Past runs side by side."""
