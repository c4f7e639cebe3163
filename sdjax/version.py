"""The version, which is part of every image's fingerprint."""

__version__ = "0.5.0"
