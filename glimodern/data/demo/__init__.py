"""Embedded default corpus, generated from this package's templates and word lists; identical on every machine."""

from .build import GROUP_HELD_OUT, GROUP_NEW, GROUP_SEEN, DemoCorpus, build_demo_corpus

__all__ = ["GROUP_HELD_OUT", "GROUP_NEW", "GROUP_SEEN", "DemoCorpus", "build_demo_corpus"]
