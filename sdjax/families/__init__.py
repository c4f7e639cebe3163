"""Kinds of models, one file each: networks by name, how they read prompts, what their UNet is given, defaults."""
