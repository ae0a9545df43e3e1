"""One small program for each Python contender.

    python -m benchmarks.workers.NAME JOB        JOB is JSON: the fields of measuring.Job

Each prints one line of JSON. They need nothing of the suite but `measuring`, so that they run in the
environments of other libraries and on other interpreters.
"""
