"""Jobs: long work on whole images, over the data plane.

Owns: what is moved or compared, in which order and how fast. A job sees handles
and spans; it moves bytes only through `vblk.graph.plane` or a handle, and it
never prints.
"""
