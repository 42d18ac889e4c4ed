"""Learners that share an update: a group of processes on Ray, each with one device of a mesh.

member.py   the actor: a learner over the devices of all members, of which this process has one
parts.py    what travels: parts of a state, and experience without what repeats itself
crew.py     the members' processes: started, asked and ended together
group.py    the `Learner` in the driver: recovers what a member that is lost takes with it
limits.py   what is refused before anything starts
"""
