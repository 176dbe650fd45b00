"""The files that come with Retort, and where they are."""
