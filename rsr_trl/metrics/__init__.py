"""Modules for Hugging Face evaluate."""
