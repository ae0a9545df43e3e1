"""What is done with whole devices: copying, comparing, checksums, and where they have data.

Nothing is imported here: who copies needs no checksums.
"""
