"""sdjax beside other programs that draw with Stable Diffusion, on the same weights and in one run; see `__main__`."""
