"""What a user types: the verbs of `retort`, what is checked before a stage starts, and the process of each stage."""
