"""Ranking metrics, tables and figures."""
