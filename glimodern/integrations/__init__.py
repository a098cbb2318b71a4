"""glimodern inside other libraries: the public gliner package, spaCy."""
