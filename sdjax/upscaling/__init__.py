"""What makes finished images and latents larger."""
