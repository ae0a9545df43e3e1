"""The load that ``aioblk bench`` puts on a device, and what comes of it.

A plan says what is wanted. Each job is a process with one event loop, or a thread with one where only one
process can have the device open; in it, as many tasks as the depth await one request after the other. The
fleet starts the processes and sums up what they tell.
"""
