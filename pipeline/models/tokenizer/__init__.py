"""Tokenizers: the chat template, reasoning tags, and whether two tokenizers mean the same by their ids."""
