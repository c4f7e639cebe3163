"""Beam: prompt files to pictures and metadata on storage, and the command line."""
