"""Retort: distil a large chat model into a small one.

prepare → generate → filter → train → evaluate → export; one word per stage, the same in every place it appears.
"""

__version__ = "0.1.0"
