"""T5: what shared examples add to transfer, they add one by one."""

from halfway.lab.studies.t5.study import STUDY

__all__ = ["STUDY"]
