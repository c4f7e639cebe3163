"""What one image is asked to be."""
