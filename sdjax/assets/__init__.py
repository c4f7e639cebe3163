"""The embedded model and CLIP's vocabulary."""
