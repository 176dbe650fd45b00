"""Forward passes over text that exists: the head, and attention for packed responses."""
