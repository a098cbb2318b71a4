"""Integrations with other libraries: the public gliner package and spaCy."""
