"""Beyond one machine: `./run ceph-test`. A Ceph cluster below a vhost-user device, NBD to another network.

cluster.py      a monitor and an OSD with RBD images, all of it in one folder
processes.py    programs in the foreground that end with whoever started them, or stay
network.py      a network of its own for the other machine, joined to this one by a pair of interfaces
__main__.py     the verb: brings up what the tests need, runs them, and leaves nothing behind
"""
