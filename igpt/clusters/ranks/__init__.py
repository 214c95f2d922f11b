"""The ranks of one node, and what stands around them on every kind of cluster.

watch       starts them and watches them to their end
requests    who asks them to stop, and why
exits       how they ended, as every node tells the others
output, progress, memory    what they say, how far they are, what they use
"""
