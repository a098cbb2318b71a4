"""Integrations with other libraries: the public gliner package, spaCy, Presidio, Haystack and Label Studio."""
