"""The tests, and where to begin reading them.

frames     packets as lines, values and bytes, and the checker of what comes out
bed        one core with its ports, described by short statements
admission  which frames a core takes in at all, in plain words
model      the NAT in plain dictionaries: the oracle; it begins with admission
pair       model and pipeline side by side, compared frame by frame
conftest   options of the test run: --rewrite, --fuzz, --worlds
scenario   runs scenarios/*.nat: model and pipeline must agree with the file
fuzz       the same with a million frames that nobody wrote down
core       the supervisor's part of packet I/O; with ring_worker, and fake_kernel where there is no kernel
netns      network namespaces; veth: wires between them; dpdk, fake_server: the other side of memif ports

Of several cores:

shunts     shunted packets, read by other code than ours; translation: what a NAT does without memory, for the model
replicas   copies of a core's rows; twins: a shard on two cores, and the stream between them, by hand
tables     rows as dictionaries, to be sent and to be taken; exchanges: cores that exchange them (exchange_peer: a process)
simulation all orders of steps of a few cores (simulated_core), searched to the end or walked by chance (search)
fake_cluster  three cores without packets, for the commands
"""
