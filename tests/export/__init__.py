"""Devices served to virtual machines, as their clients and their guests meet them."""
