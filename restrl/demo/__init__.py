"""`restrl demo`: the whole method on the generated pipelines family and the small policy shipped with restrl.

jobs.py      what is computed: one function per job, over the stages
schedule.py  runs the jobs on all cores in the order of their dependencies, resumable, with progress
table.py     what is printed and written
"""

from restrl.demo.schedule import demo

__all__ = ["demo"]
