"""The sets that evaluate asks: chat, tasks and probes, and the checkers of their answers."""
