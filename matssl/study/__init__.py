"""A study: arms x data sets x variants x label counts x seeds, as jobs and as one table."""

# What is kept of a job whose scores are noted: its models and reports, or the scores alone.
KEEP = ("models", "none")
# What submits the jobs of a study elsewhere, as submitit calls it.
CLUSTERS = ("slurm", "local")
