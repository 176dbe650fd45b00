"""What can be said of a text without a model: near duplicates, contamination, repetition, refusals; and templates."""
