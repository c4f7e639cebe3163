"""Beam: prompt files to images and metadata on storage, and the command line."""
