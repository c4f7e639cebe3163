"""What sdjax is compared with: references recorded from diffusers and transformers, and how they were made."""
