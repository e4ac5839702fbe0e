"""Reading images into memory."""
