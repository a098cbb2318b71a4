"""The embedded default corpus: made from our own templates and word lists, the same on every machine."""

from .build import GROUP_HELD_OUT, GROUP_NEW, GROUP_SEEN, DemoCorpus, build_demo_corpus

__all__ = ["GROUP_HELD_OUT", "GROUP_NEW", "GROUP_SEEN", "DemoCorpus", "build_demo_corpus"]
