"""The tables of the report, one module for each part of a run."""
