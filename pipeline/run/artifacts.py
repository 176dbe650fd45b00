"""The names of the files in a run's folder."""

CONFIG = "config.yaml"  # in the run's folder: what was resolved and run
REPORT = "report.html"
PLAN = "plan.json"  # what a pilot expects generate to take
GRADES = "grades.jsonl"  # a judge's grades of answers that filter chooses between
MANIFEST = "manifest.json"  # in a stage's folder: written last, so a stage that has it is complete
STARTED = "started.json"  # what a stage under way was begun with
TRAIN_METRICS = "metrics.jsonl"  # train: a line per logged step
SCORES = "scores.json"  # evaluate: every figure (scores.py says which)
FIDELITY = "fidelity.parquet"  # evaluate: the rows that figures were counted from, from here on
TASKS = "tasks.parquet"
RISKS = "risks.parquet"
SPEED = "speed.parquet"
SAMPLES = "samples.parquet"
VERDICTS = "verdicts.jsonl"
