"""Compiled inner loops and threads."""
