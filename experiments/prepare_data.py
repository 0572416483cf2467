"""Prepares MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 from its original files, once.

The command is `halfway.lab.commands.prepare_data`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("prepare_data")
