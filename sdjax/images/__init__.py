"""Image files: decoding, fitting, masks, encoding, and the metadata that is written into them."""
