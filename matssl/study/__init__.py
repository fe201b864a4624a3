"""A study: starts x data sets x variants x label counts x seeds, as jobs and as one table."""
