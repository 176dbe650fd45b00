"""The pages a person reads: a run's report (page), and one example through all stages (example)."""
