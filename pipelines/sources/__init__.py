"""Prompt files of any form: rows, and the jobs that they ask for."""
