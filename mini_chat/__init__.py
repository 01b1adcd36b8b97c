"""Mini-Chat: one person, one ordinary machine, a bilingual chat model from nothing."""

__version__ = "0.1.0"
