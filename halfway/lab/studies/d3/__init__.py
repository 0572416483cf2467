"""D3, a description: how far published attacks transfer, alone, together and towards a class."""

from halfway.lab.studies.d3.study import STUDY

__all__ = ["STUDY"]
