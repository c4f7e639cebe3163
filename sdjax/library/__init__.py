"""Named files of a run: one way to list folders, and to find what a name means in them."""
