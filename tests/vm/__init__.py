"""Tests that need the guest of ``vm/run``: what only NVMe, vDPA and VFIO do, and how libblkio fails there."""
